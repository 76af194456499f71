// The list of experts: which one works at a timestep, what is refused, and the keys of the last release.
#include "config/experts.h"

#include <filesystem>
#include <fstream>

#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

RootConfig config_of(std::vector<std::string> overrides) {
  overrides.push_back("text.type=umt5");  // has the default width of the model
  return load_root_config("", overrides);
}

std::string refused(const std::vector<std::string>& overrides) {
  return refusal_of([&] { validate_training(config_of(overrides)); });
}

// A configuration with keys of the last release, and what it makes the log say.
struct Old {
  explicit Old(const std::vector<std::string>& overrides) {
    said = capture_stderr([&] { config = config_of(overrides); });
  }
  RootConfig config;
  std::string said;
};

ExpertConfig until(double timestep) {
  ExpertConfig expert;
  expert.until_timestep = timestep;
  return expert;
}

}  // namespace

TEST_CASE("the expert of a timestep is the first whose range reaches down to it") {
  const std::vector<ExpertConfig> three = {until(900), until(300.5), until(0)};
  CHECK(expert_at(three, 1000) == 0);
  CHECK(expert_at(three, 900) == 0);
  CHECK(expert_at(three, 899.999) == 1);
  CHECK(expert_at(three, 300.5) == 1);
  CHECK(expert_at(three, 300) == 2);
  CHECK(expert_at(three, 0) == 2);
  CHECK(expert_at({}, 5) == 0);
  CHECK(expert_at({until(0)}, 5) == 0);
}

TEST_CASE("each expert is the configured model with files of its own") {
  const TemporaryFolder folder;
  const std::string a = folder.path() + "/a", b = folder.path() + "/b";
  fs::create_directories(a);
  const RootConfig config =
      config_of({"model.layers=7", "lora.rank=3",
                 "experts=[{weights: " + a + ", until_timestep: 875, lora: x}, {weights: " + b + ", guidance: 3}]"});
  CHECK(expert_count(config) == 2);
  CHECK(expert_model(config, 0).weights == a);
  CHECK(expert_model(config, 0).layers == 7);
  CHECK(expert_lora(config, 0).init_from == "x");
  CHECK(expert_lora(config, 1).init_from.empty());
  CHECK(expert_lora(config, 1).rank == 3);
  CHECK(contains(refusal_of([&] { expert_model(config, 1); }), "experts[1].weights: expected pretrained weights at '"));

  const RootConfig one = config_of({"model.weights=" + a, "lora.init_from=y"});
  CHECK(expert_count(one) == 1);
  CHECK(expert_model(one, 0).weights == a);
  CHECK(expert_lora(one, 0).init_from == "y");
}

TEST_CASE("a list that contradicts itself or the groups that it replaces is refused") {
  const std::string two = "experts=[{weights: a, until_timestep: 875}, {weights: b}]";
  CHECK(refused({two}).empty());
  CHECK(contains(refused({two, "model.weights=c"}), "model.weights: expected none beside experts"));
  CHECK(contains(refused({two, "lora.init_from=c"}), "experts[0].lora"));
  CHECK(contains(refused({two, "experts[1].weights=''"}), "experts[1].weights: expected weights of all experts"));
  CHECK(contains(refused({two, "experts[1].until_timestep=5"}), "experts[1].until_timestep: expected 0"));
  CHECK(contains(refused({two, "experts[0].until_timestep=0"}), "experts[0].until_timestep: expected more than"));
  CHECK(contains(refused({"experts=[{until_timestep: 3}, {until_timestep: 4}, {}]"}), "next expert (4)"));
  CHECK(contains(refused({two, "experts[2].guidance=1"}), "a list of more than 2 groups, found 2"));
  CHECK(contains(refused({two, "experts[0].boundary=1"}), "unknown key"));
  // All experts must be drawn.
  const std::string three = "experts=[{until_timestep: 900}, {until_timestep: 300}, {}]";
  CHECK(refused({three, "train.flow.min_timestep=299", "train.flow.max_timestep=901"}).empty());
  CHECK(contains(refused({three, "train.flow.min_timestep=300"}), "from below 300 to above 900"));
  CHECK(contains(refused({three, "train.flow.max_timestep=900"}), "experts to []"));
}

TEST_CASE("keys of the last release become the list, and the log says what to write") {
  const Old all({"model.weights=p/transformer", "model.boundary=875", "model.weights_2=q", "lora.init_from=h",
                 "lora.init_from_2=l", "sample.guidance_2=3"});
  REQUIRE(all.config.experts.size() == 2);
  const ExpertConfig &high = all.config.experts[0], &low = all.config.experts[1];
  CHECK((high.weights == "p/transformer" && high.until_timestep == 875 && high.guidance == 0 && high.lora == "h"));
  CHECK((low.weights == "q" && low.until_timestep == 0 && low.guidance == 3 && low.lora == "l"));
  CHECK(all.config.model.weights.empty());
  CHECK(all.config.lora.init_from.empty());
  CHECK(contains(all.said,
                 "instead of model.boundary, model.weights_2, lora.init_from_2, sample.guidance_2, "
                 "model.weights, lora.init_from write experts: [{weights: \"p/transformer\", "
                 "until_timestep: 875, lora: \"h\"}, {weights: \"q\", guidance: 3, lora: \"l\"}]"));
  // What the log says gives the same list, without a line.
  const size_t begin = all.said.find("experts: ["), end = all.said.find("]; the next release");
  REQUIRE((begin != std::string::npos && end != std::string::npos));
  const Old again({"experts=" + all.said.substr(begin + 9, end + 1 - begin - 9)});
  CHECK(again.said.empty());
  const auto yaml = [](RootConfig config) { return config_to_yaml([&](ConfigVisitor& v) { config.visit(v); }); };
  CHECK(yaml(again.config) == yaml(all.config));
  CHECK_FALSE(contains(yaml(all.config), "boundary"));
}

TEST_CASE("without model.weights_2 the second expert lies in a pipeline's folder or beside its transformer") {
  const auto second = [](const std::string& weights) {
    return Old({"model.boundary=875", "model.weights=" + weights}).config.experts.at(1).weights;
  };
  CHECK(second("p") == "p/transformer_2");
  CHECK(second("p/transformer") == "p/transformer_2");
  CHECK(second("p/transformer/") == "p/transformer_2");
  CHECK(second("p/transformer_ema") == "p/transformer_2_ema");
  CHECK(Old({"model.boundary=875"}).config.experts.at(1).weights.empty());  // random, both
}

TEST_CASE("old keys that meant nothing say nothing, and those that contradict are refused") {
  // As every resolved configuration of the last release has them.
  const Old none({"model.boundary=0", "model.weights_2=''", "lora.init_from_2=''", "sample.guidance_2=0"});
  CHECK(none.config.experts.empty());
  CHECK(none.said.empty());
  CHECK(contains(Old({"sample.guidance_2=3"}).said, "sample.guidance_2 says nothing of one transformer"));
  CHECK(contains(refused({"model.weights_2=x"}), "model.weights_2: expected none for one transformer"));
  CHECK(contains(refused({"lora.init_from_2=x"}), "lora.init_from_2: expected none for one transformer"));
  CHECK(contains(refused({"model.boundary=875", "experts=[{until_timestep: 3}, {}]"}), "found both"));
  CHECK(contains(refused({"model.boundary=high"}), "model.boundary: expected a number of 0 .. 1000, found 'high'"));
  CHECK(contains(refused({"model.boundary=1001"}), "found '1001'"));
}

TEST_CASE("activation_checkpointing of the last release is model.recompute") {
  const Old on({"model.activation_checkpointing=true"}), off({"model.activation_checkpointing=false"});
  CHECK(on.config.model.recompute == model::Recompute::kBlock);
  CHECK(contains(on.said, "write model.recompute: block"));
  CHECK(off.config.model.recompute == model::Recompute::kNone);
  CHECK(contains(off.said, "write model.recompute: none"));
  CHECK(contains(refused({"model.activation_checkpointing=maybe"}), "found 'maybe'"));
  CHECK(Old({}).config.model.recompute == model::Recompute::kAuto);
}

TEST_CASE("fp8_scaling of the last release says nothing any more") {
  const Old row({"model.linear_compute=fp8", "model.fp8_scaling=row"});
  CHECK(row.config.model.linear_compute == "fp8");
  CHECK(contains(row.said, "remove model.fp8_scaling: row"));
  CHECK(contains(refused({"model.fp8_scaling=column"}), "expected row or tensor, found 'column'"));
}
