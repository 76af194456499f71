#include "config/clip_geometry.h"
#include "train/micro_batches.h"

#include <ATen/ATen.h>

#include <atomic>
#include <filesystem>

#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/signals.h"

using namespace vmoba;
using namespace vmoba::train;
namespace fs = std::filesystem;

namespace {

// Micro batches of 2 from the clips of a folder.
struct Source {
  explicit Source(const std::string& clips, const std::string& patience = "0")
      : config(load_root_config(test::fixtures() + "/train/tiny.yaml",
                                {"data.path=" + clips, "data.patience_s=" + patience})),
        plan(data::plan_clips(config.data, clip_geometry(config))),
        codec(config.codec, at::kCPU),
        text(config, at::kCPU, nullptr) {}
  void open() {
    stream = std::make_unique<data::SampleStream>(plan, config.data, 1, 2, 0, 2, 2);
    batches = std::make_unique<MicroBatches>(config, plan, *stream, codec, text, nullptr, 2, at::kCPU,
                                             [this] { return give_up.load(); });
  }

  std::atomic<bool> give_up{false};
  RootConfig config;
  data::ClipPlan plan;
  LazyCodec codec;
  CachedTextEncoder text;
  std::unique_ptr<data::SampleStream> stream;
  std::unique_ptr<MicroBatches> batches;
};

}  // namespace

TEST_CASE("micro batches made ahead are those made when asked for") {
  Source ahead(test::source_dir() + "/assets/clips"), asked(test::source_dir() + "/assets/clips");
  ahead.open();
  asked.open();
  for (int64_t i = 0; i < 4; ++i) {
    if (i != 2) ahead.batches->prepare();
    const MicroBatch one = ahead.batches->next(), other = asked.batches->next();
    CHECK(one.samples == std::vector<int64_t>{2 * i, 2 * i + 1});
    CHECK(one.samples == other.samples);
    CHECK(one.clips == other.clips);
    REQUIRE(one.parts.size() == 1);
    const TrainingBatch &a = one.parts[0].batch, &b = other.parts[0].batch;
    CHECK(at::equal(a.input.latents_BCTHW, b.input.latents_BCTHW));
    CHECK(at::equal(a.input.conditions.text.tokens_BLE, b.input.conditions.text.tokens_BLE));
    CHECK(at::equal(a.noisy.target_BCTHW, b.noisy.target_BCTHW));
  }
}

TEST_CASE("what goes wrong ahead is told when its turn comes") {
  const test::TemporaryFolder folder;
  for (const char* name : {"a.mp4", "b.mp4"})
    fs::copy_file(test::source_dir() + "/assets/clips/02_mirror_close.mp4", folder.path() + "/" + name);
  Source source(folder.path());
  for (const char* name : {"a.mp4", "b.mp4"}) fs::remove(folder.path() + "/" + name);
  source.open();
  source.batches->prepare();
  CHECK(test::contains(test::refusal_of([&] { source.batches->next(); }), "expected a decodable clip"));
}

TEST_CASE("a wait for data that does not come ends where a stop is asked for") {
  const test::TemporaryFolder folder;
  fs::copy_file(test::source_dir() + "/assets/clips/02_mirror_close.mp4", folder.path() + "/a.mp4");
  Source source(folder.path(), "600");
  fs::remove(folder.path() + "/a.mp4");
  source.open();
  source.give_up = true;
  source.batches->prepare();
  CHECK_THROWS_AS(source.batches->next(), Stopped);
}
