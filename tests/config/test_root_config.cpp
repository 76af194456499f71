// What loading the root configuration makes of paths, and what planning says of captions.
#include "config/root_config.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "config/run_plan.h"
#include "model/hunyuan_text_fixture.h"
#include "model/long_captions.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using namespace vmoba::test;

TEST_CASE("a path that begins with ~ is one of the user's home") {
  ::setenv("HOME", "/home/someone", /*replace=*/1);
  const RootConfig config = load_root_config(
      "", {"run.dir=~/runs/a", "data.path=~", "cache.dir=/x/~/y", "codec.weights=~other/x", "data.caption_prefix=~/x"});
  CHECK(config.run.dir == "/home/someone/runs/a");
  CHECK(config.data.path == "/home/someone");
  CHECK(config.cache.dir == "/x/~/y");
  CHECK(config.codec.weights == "~other/x");   // of another user: not looked up
  CHECK(config.data.caption_prefix == "~/x");  // no path
  const RootConfig lists =
      load_root_config("", {"data.sets=[{path: ~/a}, {path: b}]", "text.type=umt5", "lora.rank=2",
                            "experts=[{until_timestep: 500, weights: ~/e}, {weights: /f, lora: ~/l}]"});
  CHECK(lists.data.sets[0].path == "/home/someone/a");
  CHECK(lists.data.sets[1].path == "b");
  CHECK(lists.experts[0].weights == "/home/someone/e");
  CHECK(lists.experts[1].lora == "/home/someone/l");
}

TEST_CASE("what cannot wait in the host's memory is refused with what to change") {
  const auto refusal = [](std::vector<std::string> keys) {
    return refusal_of([&] { validate_training(load_root_config("", keys)); });
  };
  for (const char* word : {"weights", "both"}) {
    const std::string offload = std::string("model.offload=") + word;
    const std::string whole = refusal({offload});
    CHECK(contains(whole, "only frozen ones"));
    CHECK(contains(whole, std::string("found ") + word));
    CHECK(contains(whole, "lora.rank"));
    CHECK(contains(refusal({offload, "lora.rank=4", "parallel.shard=2"}), "parallel.data"));
    CHECK(contains(refusal({offload, "lora.rank=4", "parallel.sequence=2"}), "parallel.sequence 2"));
    validate_training(load_root_config("", {offload, "lora.rank=4", "parallel.data=2"}));
  }
  const std::string kept = refusal({"model.offload=activations", "model.recompute=none"});
  CHECK(contains(kept, "model.recompute=auto"));
  for (const char* recompute : {"attention", "block", "auto"})
    validate_training(load_root_config("", {"model.offload=activations", std::string("model.recompute=") + recompute}));
  validate_training(load_root_config("", {"model.offload=auto", "model.recompute=none", "parallel.shard=2"}));
}

TEST_CASE("captions beyond text.max_tokens are counted") {
  model::TextEncoderConfig text;
  text.max_tokens = 4;
  // One token closes each caption.
  CHECK(model::count_long_captions(text, {"", "a b c", "a b, c d", "a-b c/d e"}) == 2);
  CHECK(model::count_long_captions(text, {std::string(100, 'a')}) == 0);  // one word
  text.type = "umt5";
  text.weights = test::fixtures() + "/model/umt5";
  text.tokenizer = test::fixtures() + "/model/umt5";
  text.max_tokens = 8;
  std::string many;
  for (int i = 0; i < 50; ++i) many += "mirror ";
  CHECK(model::count_long_captions(text, {"", "a", many}) == 1);
  text.tokenizer = "/nowhere";  // beside a complete cache
  CHECK(model::count_long_captions(text, {many}) == 0);
}

// Lengths from transformers, with the template's tokens behind the caption: of `hunyuan` 1, 2, 257 (256 words "a" and
// one behind them), 401, 9, 9, 4, 6, 5; of `hunyuan_15` 10, 10, 304 (295 and 9), 509, 19, 20, 12, 14.
TEST_CASE("captions of HunyuanVideo's encoders are counted by their own tokenizers, without the weights") {
  struct Case {
    std::string type, name, tokenizer;
    std::vector<std::pair<int64_t, int64_t>> cut;  // text.max_tokens -> captions
  };
  const Case cases[] = {{"hunyuan", "llama", "llama", {{401, 0}, {257, 1}, {256, 2}, {8, 4}, {1, 8}}},
                        {"hunyuan_15", "qwen", "qwen", {{509, 0}, {304, 1}, {303, 2}, {14, 4}, {13, 5}}}};
  for (const Case& one : cases) {
    model::TextEncoderConfig text;
    text.type = one.type;
    text.weights = test::kHunyuanText + (one.type == "hunyuan" ? "/text_encoder" : "/qwen");
    text.tokenizer = test::kBpe + "/" + one.tokenizer;
    const std::vector<std::string> prompts = test::hunyuan_case(one.name).at("prompts");
    for (const auto& [tokens, cut] : one.cut) {
      text.max_tokens = tokens;
      INFO(one.type << " " << tokens);
      CHECK(model::count_long_captions(text, prompts) == cut);
    }
    text.tokenizer = "/nowhere";
    CHECK(model::count_long_captions(text, prompts) == 0);
  }
}

TEST_CASE("the plan and the log say how many captions are cut") {
  const RootConfig config = load_root_config(test::fixtures() + "/train/tiny.yaml", {"text.max_tokens=20"});
  RunPlan plan;
  const std::string said = capture_stderr([&] { plan = plan_run(config); });
  // Of the ten shipped captions, whose words were counted beside.
  const auto noted = std::find_if(plan.training.notes.begin(), plan.training.notes.end(),
                                  [](const std::string& note) { return contains(note, "text.max_tokens (20)"); });
  REQUIRE(noted != plan.training.notes.end());
  CHECK(contains(*noted, "4 of 10 captions"));
  CHECK(contains(said, *noted));
  RootConfig roomy = config;
  roomy.text.max_tokens = 512;
  for (const std::string& note : plan_run(roomy).training.notes) CHECK_FALSE(contains(note, "text.max_tokens"));
}

TEST_CASE("samples are as published where the user does not say: HunyuanVideo 1.5, step-distilled too") {
  const auto sample = [](const std::string& weights, std::vector<std::string> keys = {}) {
    keys.insert(keys.begin(), {"model.architecture=hunyuan_video_15", "model.task=i2v", "text.dim=12",
                               "model.weights=" + test::fixtures() + "/model/" + weights});
    return load_root_config("", keys).sample;
  };
  const SampleConfig published = sample("hunyuan_15_i2v"), distilled = sample("hunyuan_15_meanflow");
  CHECK((published.steps == 50 && published.guidance == 6 && published.shift == 5));
  CHECK((distilled.steps == 12 && distilled.guidance == 1 && distilled.shift == 7));
  CHECK((published.scheduler == "even_euler" && distilled.scheduler == "even_euler"));
  const SampleConfig own = sample("hunyuan_15_meanflow", {"sample.steps=8", "sample.shift=3"});
  CHECK((own.steps == 8 && own.shift == 3 && own.guidance == 1));
}
