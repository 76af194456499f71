// Adapters of the real peft and diffusers, merged by vmoba-convert, give the weights that those packages make of them
// (lora_parity.py); strength from metadata, configuration and patterns, DoRA, and B's bias.
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "support/catch.h"
#include "support/messages.h"
#include "support/must_run.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kConvert = bin_dir() + "/vmoba-convert";

std::string parity(const std::string& command, const std::string& folder) {
  return must_run({python(), source_dir() + "/tests/apps/lora_parity.py", command, folder});
}

std::map<std::string, std::string> made_variants(const std::string& folder) {
  std::map<std::string, std::string> out;
  std::istringstream lines(parity("make", folder));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string first, name, path;
    words >> first >> name >> path;
    if (first == "variant") out[name] = path;
  }
  return out;
}

}  // namespace

TEST_CASE("merged adapters of peft and diffusers are what those packages merge") {
  const TemporaryFolder folder;
  const auto variants = made_variants(folder.path());
  REQUIRE(variants.size() == 19);
  for (const auto& [name, path] : variants) {
    INFO(name);
    must_run({kConvert, folder.path() + "/base", folder.path() + "/" + name + "_merged", "--layout", "diffusers",
              "--lora", path});
  }
  parity("check", folder.path());
}
