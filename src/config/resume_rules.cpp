#include "config/resume_rules.h"

#include <algorithm>
#include <map>
#include <regex>

#include "core/check.h"
#include "core/yaml_values.h"

namespace vmoba {
namespace {

struct Row {
  const char* key;  // a full key, or a group with ".*" behind it; the longest that fits counts
  ResumeRule rule;
};

constexpr ResumeRule kModel = ResumeRule::kModel, kExactness = ResumeRule::kExactness, kFree = ResumeRule::kFree;

constexpr Row kRows[] = {
    {"seed", kModel},  // all samples and noise so far were drawn from it
    {"run.*", kFree},
    {"run.device", kExactness},
    {"run.deterministic", kExactness},
    {"run.threads", kExactness},
    {"parallel.*", kFree},
    {"parallel.data", kExactness},
    {"parallel.shard", kExactness},
    {"parallel.sequence", kExactness},
    {"data.*", kExactness},
    {"data.decode_threads", kFree},
    {"data.prefetch_clips", kFree},
    {"data.patience_s", kFree},
    {"data.max_failed", kFree},
    {"model.*", kModel},
    {"model.weights", kExactness},  // a path; what trained weights began with no longer counts
    {"model.compute_dtype", kExactness},
    {"model.weights_dtype", kExactness},
    {"model.pointwise", kExactness},
    {"model.linear_compute", kExactness},
    {"model.fp8_scaling", kExactness},  // its choice in the last release
    {"model.fp8_maps", kExactness},
    {"model.recompute", kFree},
    {"model.offload", kFree},
    {"model.activation_checkpointing", kFree},  // its name in the last release
    {"experts[].*", kModel},
    {"experts[].weights", kExactness},
    {"experts[].guidance", kFree},
    {"experts[].lora", kFree},
    {"lora.*", kModel},
    {"lora.init_from", kFree},
    {"lora.plus_ratio", kExactness},
    {"lora.trigger_words", kFree},
    {"lora.formats", kFree},
    {"lora.save_dtype", kFree},
    {"codec.*", kExactness},
    {"codec.type", kModel},
    {"text.*", kExactness},
    {"text.type", kModel},
    {"text.dim", kModel},
    {"image_encoder.*", kExactness},
    {"image_encoder.type", kModel},
    {"attention.*", kExactness},
    {"attention.dense_steps", kFree},
    {"attention.remainder_beta", kModel},
    {"cache.*", kFree},
    {"cache.latent_dtype", kExactness},
    {"train.*", kFree},
    {"train.steps", kExactness},  // where the learning rate falls towards it
    {"train.global_batch", kModel},
    {"train.micro_batch", kExactness},
    {"train.optimizer.*", kExactness},
    {"train.optimizer.type", kModel},
    {"train.flow.*", kExactness},
    {"train.ema.*", kExactness},
    {"train.distill.*", kExactness},
    {"sample.*", kFree},
    {"validate.*", kFree},
};

constexpr const char* kOfARank[] = {"run.log_level", "run.threads", "data.decode_threads", "data.prefetch_clips"};

// "experts[0].weights" -> "experts[].weights".
std::string without_numbers(const std::string& key) {
  static const std::regex number(R"(\[\d+\])");
  return std::regex_replace(key, number, "[]");
}

std::map<std::string, std::string> values_of(RootConfig config) {
  return yaml_values(config_to_yaml([&](ConfigVisitor& v) { config.visit(v); }), "this configuration");
}

// The last step is where linear and cosine end; a constant rate knows no end.
bool matters(const std::string& key, const RootConfig& config) {
  return key != "train.steps" || config.train.optimizer.schedule != "constant";
}

}  // namespace

ResumeRule resume_rule(const std::string& key) {
  const std::string plain = without_numbers(key);
  size_t longest = 0;
  ResumeRule rule = ResumeRule::kExactness;
  for (const Row& row : kRows) {
    const std::string name = row.key;
    const bool group = name.ends_with(".*");
    const bool fits = group ? plain.starts_with(name.substr(0, name.size() - 1)) : plain == name;
    const size_t length = group ? name.size() - 2 : name.size() + 1;
    if (!fits || length <= longest) continue;
    longest = length;
    rule = row.rule;
  }
  return rule;
}

std::vector<ChangedKey> changed_keys(const std::string& checkpoint_yaml, const std::string& origin,
                                     const RootConfig& config) {
  std::map<std::string, std::string> before = values_of(RootConfig());
  for (auto& [key, value] : yaml_values(checkpoint_yaml, origin)) before[key] = value;
  const std::map<std::string, std::string> now = values_of(config);
  std::vector<ChangedKey> out;
  const auto add = [&](const std::string& key, const std::string& old_value, const std::string& new_value) {
    const ResumeRule rule = resume_rule(key);
    if (rule != ResumeRule::kFree && matters(key, config)) out.push_back({key, old_value, new_value, rule});
  };
  for (const auto& [key, value] : now) {
    const auto found = before.find(key);
    if (found == before.end())
      add(key, "nothing", value);
    else if (found->second != value)
      add(key, found->second, value);
  }
  // Items that a list lost; other keys that are gone belong to an earlier version.
  for (const auto& [key, value] : before)
    if (!now.contains(key) && key.find('[') != std::string::npos) add(key, value, "nothing");
  return out;
}

bool may_differ_between_ranks(const std::string& key) {
  return std::find(std::begin(kOfARank), std::end(kOfARank), key) != std::end(kOfARank);
}

std::string run_identity(const RootConfig& config) {
  std::string out;
  for (const auto& [key, value] : values_of(config))
    if (resume_rule(key) != ResumeRule::kFree && !key.starts_with("run.") && !key.starts_with("parallel.") &&
        matters(key, config))
      out += fmt::format("{}: {}\n", key, value);
  return out;
}

}  // namespace vmoba
