// Every reader of foreign files takes its sound input and answers every damaged one with a refusal that names the
// file: never with another exception, a crash, a hang or wild memory. The program fuzz_readers is the same with
// sanitizers in the readers; its long cases run for VMOBA_FUZZ_S seconds from the seed VMOBA_FUZZ_SEED.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <regex>

#include "core/elapsed.h"
#include "core/log.h"
#include "readers/damage.h"
#include "readers/readers.h"
#include "support/catch.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::test;

namespace {

namespace fs = std::filesystem;

constexpr double kSlow_s = 20;  // of one input, on a busy machine and with sanitizers

double number_from_environment(const char* name, double otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atof(text);
}

// What readers leave behind does not reach the next input.
void reset(const Reader& reader, const std::string& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) fs::remove_all(entry.path());
  reader.make(folder);
}

std::string broken_or_slow(const Reader& reader, const std::string& folder) {
  const auto start = std::chrono::steady_clock::now();
  const std::string broken = broken_contract(reader, folder);
  if (!broken.empty()) return broken;
  return seconds_since(start) > kSlow_s ? "more than " + std::to_string(kSlow_s) + " s" : "";
}

// One damaged file of the reader's, numbered `i` of a seed. What is wrong, or "".
std::string try_damage(const Reader& reader, const std::string& folder, uint64_t seed, uint64_t i) {
  RandomStream random(seed, "fuzz." + reader.name, i);
  const std::string& file = reader.files[random.below(reader.files.size())];
  const std::string sound = read_text(folder + "/" + file);
  write_text(folder + "/" + file, damaged(sound, file.ends_with(".json"), random));
  const std::string broken = broken_or_slow(reader, folder);
  if (broken.empty()) write_text(folder + "/" + file, sound);
  return broken.empty() ? "" : fmt::format("{}, input {} of seed {}: {}", reader.name, i, seed, broken);
}

// Readers may write: metrics, caches. The input is made anew now and then.
void fuzz(const Reader& reader, uint64_t seed, uint64_t count, double seconds) {
  const TemporaryFolder folder;
  const auto start = std::chrono::steady_clock::now();
  uint64_t i = 0;
  for (; i < count && seconds_since(start) < seconds; ++i) {
    INFO(reader.name << ", input " << i << " of seed " << seed);  // what a fatal error prints
    if (i % 16 == 0) reset(reader, folder.path());
    const std::string broken = try_damage(reader, folder.path(), seed, i);
    if (broken.empty()) continue;
    FAIL_CHECK(broken.substr(0, 1000));
    return;
  }
  if (count > 100'000) std::cout << reader.name << ": " << i << " inputs" << std::endl;
}

bool is_media(const Reader& reader) {
  return reader.name.starts_with("video") || reader.name.starts_with("picture");
}

}  // namespace

TEST_CASE("every reader takes its sound input") {
  set_log_level(LogLevel::kError);
  for (const Reader& reader : readers()) {
    const TemporaryFolder folder;
    reset(reader, folder.path());
    INFO(reader.name);
    CHECK(refusal(reader, folder.path()) == "");
    CHECK(broken_contract(reader, folder.path()) == "");
  }
}

TEST_CASE("JSON of other types, with NaN, huge numbers, many levels or missing keys is taken or refused") {
  set_log_level(LogLevel::kError);
  for (const Reader& reader : readers()) {
    for (const std::string& file : reader.files) {
      if (!file.ends_with(".json")) continue;
      const TemporaryFolder folder;
      reset(reader, folder.path());
      const std::string path = folder.path() + "/" + file, sound = read_text(path);
      for (const std::string& wrong : wrong_json(sound)) {
        write_text(path, wrong);
        const std::string broken = broken_or_slow(reader, folder.path());
        if (broken.empty()) continue;
        FAIL_CHECK(reader.name << ": " << broken.substr(0, 500) << "\nfor " << wrong.substr(0, 500));
        break;
      }
    }
  }
}

TEST_CASE("a refusal of JSON that is cut off or no JSON names file, line and column") {
  set_log_level(LogLevel::kError);
  size_t checked = 0;
  for (const Reader& reader : readers()) {
    for (const std::string& file : reader.files) {
      if (!file.ends_with(".json") || reader.name.starts_with("captions")) continue;
      const TemporaryFolder folder;
      reset(reader, folder.path());
      const std::string path = folder.path() + "/" + file, sound = read_text(path);
      for (const std::string& wrong : {sound.substr(0, sound.size() / 2), std::string("{\"a\": 1e999}"),
                                       std::string("{\"a\":\n NaN}"), std::string(1000, '[')}) {
        write_text(path, wrong);
        const std::string text = refusal(reader, folder.path());
        INFO(reader.name << ": " << wrong.substr(0, 100) << " -> " << text);
        // The checksums' hash refuses any other text, and Python's NaN is no error in a manifest.
        if (file == "state/checksums.json" && reader.name != "checksums") continue;
        if (reader.name.starts_with("manifest") && wrong.find("NaN") != std::string::npos) continue;
        CHECK(text.find(path) != std::string::npos);
        CHECK(std::regex_search(text, std::regex(":[0-9]+:[0-9]+")));
        ++checked;
      }
    }
  }
  CHECK(checked > 40);
}

TEST_CASE("damaged inputs of every reader are taken or refused") {
  set_log_level(LogLevel::kError);
  for (const Reader& reader : readers()) fuzz(reader, 1, is_media(reader) ? 20 : 100, 1e9);
}

TEST_CASE("every reader is fuzzed in turn for its share of the time", "[fuzz]") {
  set_log_level(LogLevel::kError);
  const double seconds = number_from_environment("VMOBA_FUZZ_S", 600);
  const auto seed = uint64_t(number_from_environment("VMOBA_FUZZ_SEED", 2));
  for (const Reader& reader : readers()) {
    DYNAMIC_SECTION(reader.name) {
      fuzz(reader, seed, uint64_t(1) << 40, seconds / double(readers().size()));
    }
  }
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  CHECK(usage.ru_maxrss / 1024 < 8000);  // MiB
}
