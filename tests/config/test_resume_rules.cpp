// What a changed key means on resuming, and that no key is left to chance.
#include "config/resume_rules.h"
#include "core/yaml_values.h"
#include "support/catch.h"

using namespace vmoba;

namespace {

std::string yaml_of(RootConfig config) {
  return config_to_yaml([&](ConfigVisitor& v) { config.visit(v); });
}

std::vector<std::string> keys(const std::vector<ChangedKey>& changes) {
  std::vector<std::string> out;
  for (const ChangedKey& change : changes) out.push_back(change.key);
  return out;
}

}  // namespace

TEST_CASE("keys have the rule of the nearest row") {
  const auto is = [](const char* key, ResumeRule rule) {
    INFO(key);
    CHECK(resume_rule(key) == rule);
  };
  for (const char* key : {"seed", "model.heads", "model.head_dim", "model.eps", "model.task", "model.ffn_dim",
                          "lora.rank", "lora.alpha", "lora.targets", "codec.type", "text.dim",
                          "experts[1].until_timestep", "train.global_batch", "train.optimizer.type"})
    is(key, ResumeRule::kModel);
  for (const char* key :
       {"data.path", "data.fps", "data.frames", "data.horizontal_flip", "data.sets[3].path", "attention.tau",
        "attention.backend", "model.compute_dtype", "model.weights", "train.micro_batch", "train.optimizer.lr",
        "train.flow.shift", "train.ema.decay", "codec.weights", "cache.latent_dtype", "run.deterministic",
        "a.key.of.tomorrow", "parallel.shard", "experts[0].weights"})
    is(key, ResumeRule::kExactness);
  for (const char* key :
       {"run.dir", "run.log_level", "data.prefetch_clips", "data.decode_threads", "data.patience_s", "data.max_failed",
        "model.recompute", "model.activation_checkpointing", "lora.formats", "lora.save_dtype", "cache.dir",
        "train.checkpoint_every", "train.keep_checkpoints", "train.validate_every", "train.tensorboard", "sample.steps",
        "parallel.timeout_s", "attention.dense_steps"})
    is(key, ResumeRule::kFree);
}

TEST_CASE("changes are found by key, lists included; keys that an earlier version lacks have their defaults") {
  RootConfig before;
  before.experts = {{"a", 875, 0, ""}, {"b", 0, 0, ""}};
  RootConfig now = before;
  CHECK(changed_keys(yaml_of(before), "here", now).empty());
  now.model.heads = 3;
  now.run.dir = std::string("elsewhere");
  now.data.frames = {5, 9};
  now.experts[1].weights = std::string("c");
  CHECK(keys(changed_keys(yaml_of(before), "here", now)) ==
        std::vector<std::string>{"data.frames", "experts[1].weights", "model.heads"});
  now.experts.clear();
  const auto lost = keys(changed_keys(yaml_of(before), "here", now));
  CHECK(std::count(lost.begin(), lost.end(), "experts[0].until_timestep") == 1);

  RootConfig other;
  other.attention.dense_layers += 1;
  const auto changes = changed_keys("seed: 0\n", "here", other);
  REQUIRE(changes.size() == 1);
  CHECK(changes[0].key == "attention.dense_layers");
  CHECK(changes[0].old_value == "0");
  CHECK(changes[0].new_value == "1");
}

TEST_CASE("the last step matters where the learning rate falls towards it") {
  RootConfig before, now;
  now.train.steps = before.train.steps + 1;
  CHECK(changed_keys(yaml_of(before), "here", now).empty());
  before.train.optimizer.schedule = now.train.optimizer.schedule = std::string("cosine");
  CHECK(keys(changed_keys(yaml_of(before), "here", now)) == std::vector<std::string>{"train.steps"});
}

TEST_CASE("where and how a run computes is no part of what it is") {
  RootConfig a, b;
  b.run.dir = std::string("elsewhere");
  b.run.threads = 3;
  b.parallel.shard = 2;
  b.train.checkpoint_every += 1;
  b.sample.steps += 1;
  CHECK(run_identity(a) == run_identity(b));
  b.train.optimizer.lr *= 2;
  CHECK(run_identity(a) != run_identity(b));
}
