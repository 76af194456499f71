// docs/first_lora.md as its readers meet it: the configuration and all commands of the page, in their order, on small
// random models and a shipped clip.
#include <filesystem>
#include <fstream>
#include <regex>

#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

// The contents of the page's code blocks of this kind.
std::vector<std::string> blocks(const std::string& page, const std::string& kind) {
  std::vector<std::string> out;
  const std::string begin = "\n```" + kind + "\n";
  for (size_t at = 0; (at = page.find(begin, at)) != std::string::npos;) {
    at += begin.size();
    out.push_back(page.substr(at, page.find("\n```", at) + 1 - at));
  }
  return out;
}

// The page's sizes would take hours on a CPU.
std::string smaller(std::string yaml) {
  const std::pair<const char*, const char*> sizes[] = {
      {"height: 480", "height: 32"}, {"width: 832", "width: 64"}, {R"(frames: \[1, 17, 33\])", "frames: [1, 5]"},
      {"frames: 33", "frames: 5"},   {"epochs: 20", "epochs: 2"}, {"every_epochs: 5", "every_epochs: 1"},
      {"rank: 16", "rank: 4"},       {"steps: 20", "steps: 2"}};
  for (const auto& [from, to] : sizes) {
    const std::regex pattern(from);
    INFO(from);
    REQUIRE(std::regex_search(yaml, pattern));
    yaml = std::regex_replace(yaml, pattern, to);
  }
  return yaml;
}

}  // namespace

TEST_CASE("every command of docs/first_lora.md does what the page says") {
  const TemporaryFolder folder;
  const std::string at = folder.path();
  const ProcessResult made =
      run_process({python(), source_dir() + "/tests/apps/finetune.py", "make", at + "/random", fixtures() + "/model"},
                  {"OMP_NUM_THREADS=1"});
  INFO(made.output);
  REQUIRE(made.exit_code == 0);
  fs::create_directories(at + "/models");
  fs::create_directory_symlink(at + "/random/t2v", at + "/models/wan");
  fs::copy_file(source_dir() + "/assets/clips/01_mirror_in_dark_hall.mp4", at + "/holiday.mp4");

  const std::string page = read_text(source_dir() + "/docs/first_lora.md");
  const std::vector<std::string> configurations = blocks(page, "yaml");
  REQUIRE(configurations.size() == 1);
  std::ofstream(at + "/my_lora.yaml") << smaller(configurations.front());
  const std::vector<std::string> commands = blocks(page, "bash");
  REQUIRE(commands.size() == 7);
  for (const std::string& block : commands) {
    const ProcessResult result =
        run_process({"bash", "-euo", "pipefail", "-c", "cd '" + at + "'; PATH='" + bin_dir() + "':$PATH\n" + block},
                    {"OMP_NUM_THREADS=1"});
    INFO(block << result.output);
    REQUIRE(result.exit_code == 0);
  }
  for (const char* file :
       {"runs/my_lora/report.html", "runs/my_lora/samples/grid.png", "compare.html", "sample.mp4",
        "runs/my_lora/checkpoint-2", "runs/my_lora/checkpoint-4", "runs/my_lora/checkpoint-4/lora/kohya.safetensors"}) {
    INFO(file);
    CHECK(fs::exists(at + "/" + file));
  }
  const std::string lora = read_text(at + "/ComfyUI/models/loras/my_lora.safetensors");
  for (const char* word :
       {"\"ss_network_dim\":\"4\"", "\"ss_epoch\":\"2\"", "\"modelspec.trigger_phrase\":\"zxq hall\"",
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight"}) {
    INFO(word);
    CHECK(contains(lora, word));
  }
  // What the page names and no block of it runs.
  CHECK(contains(page, "hf download"));
  CHECK(fs::exists(source_dir() + "/docs/memory.md"));
}
