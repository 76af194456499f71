#include "config/retired_keys.h"

#include <charconv>
#include <filesystem>

#include <fmt/ranges.h>

#include "core/check.h"
#include "core/log.h"

namespace vmoba {
namespace {

// The keys of a second transformer before `experts`.
constexpr const char* kBoundary = "model.boundary";
constexpr const char* kWeights = "model.weights_2";
constexpr const char* kLora = "lora.init_from_2";
constexpr const char* kGuidance = "sample.guidance_2";

constexpr const char* kCheckpointing = "model.activation_checkpointing";
constexpr const char* kFp8Scaling = "model.fp8_scaling";

std::string text_of(const RetiredKeys& retired, const char* key) {
  const auto found = retired.found.find(key);
  return found == retired.found.end() ? "" : found->second;
}

void adopt_checkpointing(const RetiredKeys& retired, RootConfig& config) {
  const std::string text = text_of(retired, kCheckpointing);
  if (text.empty()) return;
  VMOBA_CHECK_INPUT(text == "true" || text == "false",
                    "{}: expected true or false, found '{}'; this key of the last release is now model.recompute",
                    kCheckpointing, text);
  config.model.recompute = text == "true" ? model::Recompute::kBlock : model::Recompute::kNone;
  log_warning(
      "instead of {}: {} write model.recompute: {} (or auto, which fills the memory of the GPU); the next "
      "release refuses the old key",
      kCheckpointing, text, choice_word(config.model.recompute));
}

void drop_fp8_scaling(const RetiredKeys& retired) {
  const std::string text = text_of(retired, kFp8Scaling);
  if (text.empty()) return;
  VMOBA_CHECK_INPUT(text == "row" || text == "tensor",
                    "{}: expected row or tensor, found '{}'; products have scales of their own now, remove this key",
                    kFp8Scaling, text);
  log_warning(
      "remove {}: {}; every product of model.linear_compute fp8 has the scales that it gains from "
      "(docs/numerics.md), the next release refuses the key",
      kFp8Scaling, text);
}

double number_of(const RetiredKeys& retired, const char* key, double max) {
  const std::string text = text_of(retired, key);
  if (text.empty()) return 0;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  VMOBA_CHECK_INPUT(error == std::errc() && end == text.data() + text.size() && value >= 0 && value <= max,
                    "{}: expected a number of 0 .. {}, found '{}'; this key of the last release is now in the list "
                    "experts",
                    key, max, text);
  return value;
}

// Where the second transformer lies that belongs to the weights of the first: diffusers' pipelines have transformer/
// and transformer_2/, checkpoints of runs transformer_ema/ and transformer_2_ema/ as well.
std::string second_transformer(const std::filesystem::path& weights) {
  if (weights.empty()) return "";
  const std::filesystem::path folder = weights.has_filename() ? weights : weights.parent_path();
  if (folder.filename() == "transformer") return (folder.parent_path() / "transformer_2").string();
  if (folder.filename() == "transformer_ema") return (folder.parent_path() / "transformer_2_ema").string();
  return (folder / "transformer_2").string();
}

// On one line, as a YAML file and the command line take it; fields with their defaults are left out.
std::string as_yaml(const ExpertConfig& expert) {
  std::vector<std::string> fields;
  if (!expert.weights.empty()) fields.push_back(fmt::format("weights: \"{}\"", expert.weights));
  if (expert.until_timestep > 0) fields.push_back(fmt::format("until_timestep: {}", expert.until_timestep));
  if (expert.guidance > 0) fields.push_back(fmt::format("guidance: {}", expert.guidance));
  if (!expert.lora.empty()) fields.push_back(fmt::format("lora: \"{}\"", expert.lora));
  return fmt::format("{{{}}}", fmt::join(fields, ", "));
}

void adopt_second_transformer(const RetiredKeys& retired, RootConfig& config) {
  const double boundary = number_of(retired, kBoundary, 1000), guidance = number_of(retired, kGuidance, 1e9);
  const std::string weights = text_of(retired, kWeights), lora = text_of(retired, kLora);
  std::vector<std::string> used;
  if (boundary > 0) used.push_back(kBoundary);
  if (!weights.empty()) used.push_back(kWeights);
  if (!lora.empty()) used.push_back(kLora);
  if (guidance > 0) used.push_back(kGuidance);
  if (used.empty()) return;
  VMOBA_CHECK_INPUT(config.experts.empty(), "{}: expected none of these keys beside experts, found both; remove them",
                    fmt::join(used, ", "));
  if (boundary == 0) {
    VMOBA_CHECK_INPUT(weights.empty() && lora.empty(),
                      "{}: expected none for one transformer (model.boundary 0); two transformers are written as "
                      "experts: [{{weights: A, until_timestep: 875}}, {{weights: B}}]",
                      fmt::join(used, ", "));
    log_warning("{} says nothing of one transformer; remove it, the next release refuses it", kGuidance);
    return;
  }
  config.experts = {{config.model.weights, boundary, 0, config.lora.init_from},
                    {weights.empty() ? second_transformer(config.model.weights) : weights, 0, guidance, lora}};
  if (!config.model.weights.empty()) used.push_back("model.weights");
  if (!config.lora.init_from.empty()) used.push_back("lora.init_from");
  config.model.weights.clear();
  config.lora.init_from.clear();
  log_warning("instead of {} write experts: [{}, {}]; the next release refuses the old keys", fmt::join(used, ", "),
              as_yaml(config.experts[0]), as_yaml(config.experts[1]));
}

}  // namespace

RetiredKeys retired_keys() {
  return {{kBoundary, kWeights, kLora, kGuidance, kCheckpointing, kFp8Scaling}, {}};
}

void adopt_retired_keys(const RetiredKeys& retired, RootConfig& config) {
  adopt_checkpointing(retired, config);
  drop_fp8_scaling(retired);
  adopt_second_transformer(retired, config);
}

}  // namespace vmoba
