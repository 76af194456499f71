// What loading the root configuration makes of paths, and what planning says of captions.
#include "config/root_config.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "config/run_plan.h"
#include "model/long_captions.h"
#include "support/catch.h"
#include "support/messages.h"
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

TEST_CASE("captions beyond text.max_tokens are counted") {
  model::TextEncoderConfig text;
  text.max_tokens = 4;
  // One token closes each caption.
  CHECK(model::count_long_captions(text, {"", "a b c", "a b, c d", "a-b c/d e"}) == 2);
  CHECK(model::count_long_captions(text, {std::string(100, 'a')}) == 0);  // one word
  text.type = "umt5";
  text.weights = VMOBA_FIXTURES "/model/umt5";
  text.tokenizer = VMOBA_FIXTURES "/model/umt5";
  text.max_tokens = 8;
  std::string many;
  for (int i = 0; i < 50; ++i) many += "mirror ";
  CHECK(model::count_long_captions(text, {"", "a", many}) == 1);
  text.tokenizer = "/nowhere";  // beside a complete cache
  CHECK(model::count_long_captions(text, {many}) == 0);
}

TEST_CASE("the plan and the log say how many captions are cut") {
  const RootConfig config = load_root_config(VMOBA_FIXTURES "/train/tiny.yaml", {"text.max_tokens=20"});
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
