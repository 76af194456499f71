#include "config/root_config.h"

#include <algorithm>
#include <cstdlib>

#include "config/experts.h"
#include "config/foreign_keys.h"
#include "config/retired_keys.h"
#include "core/check.h"
#include "core/unknown_key.h"
#include "model/architecture.h"
#include "model/image_text_encoder.h"
#include "model/weights/stated_sizes.h"

namespace vmoba {

void RootConfig::visit(ConfigVisitor& v) {
  v.field("seed", seed, "Every random draw is a function of it and of the sample or step number.", at_least(0));
  v.group("run", "Where a run lives.", run);
  v.group("parallel", "Several ranks (docs/distributed.md).", parallel);
  v.group("data", "Clips to train on.", data);
  v.group("model", "The diffusion transformer. Where weights are given, its sizes are read from there.", model);
  v.groups("experts",
           "Several transformers in the order of denoising, each for a range of timesteps (Wan2.2 A14B has two, "
           "docs/pretrained.md). An empty list is one transformer, that of `model.weights`.",
           experts);
  v.group("lora", "Low-rank adapters beside a frozen transformer (docs/pretrained.md).", lora);
  v.group("codec", "Video to latents.", codec);
  v.group("text", "Captions to embeddings.", text);
  v.group("image_encoder", "First frames to embeddings, for models with image tokens.", image_encoder);
  v.group("cache", "Latents and embeddings made once (`vmoba-encode`, docs/running.md).", cache);
  v.group("attention", "Self attention of every layer: full or VMoBA (docs/attention.md).", attention);
  v.group("train", "The training loop.", train);
  v.group("validate", "Loss on clips that are never trained on (docs/running.md).", validation);
  v.group("sample", "Sampling: `vmoba-sample` and validation during training.", sample);
}

void RootConfig::validate() const {
  data.validate();
  model.validate();
  lora.validate();
  attention.validate();
  validation.validate();
  VMOBA_CHECK_INPUT(train.global_batch % train.micro_batch == 0,
                    "train.global_batch: expected a multiple of train.micro_batch ({}), found {}", train.micro_batch,
                    train.global_batch);
  VMOBA_CHECK_INPUT(train.flow.min_timestep < train.flow.max_timestep,
                    "train.flow.min_timestep: expected less than train.flow.max_timestep ({}), found {}",
                    train.flow.max_timestep, train.flow.min_timestep);
  for (double beta : train.optimizer.betas)
    VMOBA_CHECK_INPUT(beta < 1, "train.optimizer.betas: expected values below 1, found {}", beta);
  if (text.type == "hash")
    VMOBA_CHECK_INPUT(text.dim == model.text_dim,
                      "text.dim: expected model.text_dim ({}), found {}; set both to the same width", model.text_dim,
                      text.dim);
  VMOBA_CHECK_INPUT(
      text.type != "hunyuan" || model.task == "t2v",
      "text.type: expected hunyuan_i2v (model.image_condition replace) or hunyuan_i2v_concat (concat) for "
      "model.task {}, which show the first frame to LLaVA, found hunyuan; set it",
      model.task);
  VMOBA_CHECK_INPUT(
      !model::sees_images(text) || model.task == "i2v",
      "text.type: expected an encoder of captions alone for model.task {}, found {}, which sees the first "
      "frame; set text.type=hunyuan, or model.task=i2v",
      model.task, text.type);
  check_experts(*this);
  VMOBA_CHECK_INPUT(!run.dir.empty(), "run.dir: expected a folder, found nothing");
}

namespace {

// Shells leave "~" alone behind "key=", and YAML knows none: a folder of that name would be made.
void expand_home(RootConfig& config) {
  const char* home = std::getenv("HOME");
  if (home == nullptr) return;
  std::vector<std::string*> paths = {&config.run.dir,        &config.data.path,     &config.validation.path,
                                     &config.model.weights,  &config.codec.weights, &config.text.weights,
                                     &config.text.tokenizer, &config.cache.dir,     &config.image_encoder.weights,
                                     &config.lora.init_from};
  for (data::DataSetConfig& set : config.data.sets) paths.push_back(&set.path);
  for (ExpertConfig& expert : config.experts) paths.insert(paths.end(), {&expert.weights, &expert.lora});
  for (std::string* path : paths)
    if (*path == "~" || path->starts_with("~/")) path->replace(0, 1, home);
}

std::set<std::string> keys_of_group(const std::set<std::string>& keys, const std::string& group) {
  std::set<std::string> out;
  for (const std::string& key : keys)
    if (key.starts_with(group + ".")) out.insert(key.substr(group.size() + 1));
  return out;
}

// Whether the file has every key, as a run's config.resolved.yaml has.
bool is_resolved(const std::set<std::string>& given) {
  RootConfig all;
  const std::map<std::string, std::string> values = config_values([&](ConfigVisitor& v) { all.sample.visit(v); });
  return keys_of_group(given, "sample").size() == values.size();
}

// As load_config; of a key that another tool has, says where it is here.
std::set<std::string> load_known_keys(const std::string& path, const std::vector<std::string>& overrides,
                                      RetiredKeys& retired, RootConfig& config) {
  try {
    return load_config(
        path, overrides, [&](ConfigVisitor& v) { config.visit(v); }, &retired);
  } catch (const UnknownKey& unknown) {
    const std::string home = home_of_foreign_key(unknown.key());
    if (home.empty()) throw;
    throw_input("{}: unknown key; here it is {}", unknown.place(), home);
  }
}

void check_teacher(const RootConfig& config) {
  const DistillConfig& distill = config.train.distill;
  const bool lora = config.lora.enabled(), listed = !config.experts.empty();
  const bool random = listed ? std::any_of(config.experts.begin(), config.experts.end(),
                                           [](const ExpertConfig& expert) { return expert.weights.empty(); })
                             : config.model.weights.empty() && distill.weights.empty();
  VMOBA_CHECK_INPUT(distill.weights.empty() || distill.weight > 0,
                    "expected train.distill.weight above 0 with train.distill.weights, found 0; set it, or remove "
                    "train.distill.weights");
  VMOBA_CHECK_INPUT(distill.weights.empty() || !(lora || listed),
                    "expected no train.distill.weights with {}, found '{}'; remove it: the teacher is {}",
                    lora ? "LoRA" : "experts", distill.weights, lora ? "the base model" : "each expert's own weights");
  VMOBA_CHECK_INPUT(distill.weight == 0 || !random,
                    "expected trained weights of a teacher with train.distill.weight {}, found none; set {}",
                    distill.weight, listed ? "experts[].weights" : "model.weights or train.distill.weights");
}

// Ranks cut values apart, not the bytes of blocks of them.
void check_packed(const RootConfig& config) {
  VMOBA_CHECK_INPUT(
      config.model.weights_dtype != "packed" || config.parallel.shard * config.parallel.sequence == 1,
      "model.weights_dtype: expected fp32, bf16 or fp8 with parallel.shard {} and parallel.sequence {} (ranks hold the "
      "weights together), found packed; change it, or set parallel.data only",
      config.parallel.shard, config.parallel.sequence);
}

void check_offload(const RootConfig& config) {
  const model::Offload offload = config.model.offload;
  const std::string word = choice_word(offload);
  VMOBA_CHECK_INPUT(!model::offloads_weights(offload) || config.lora.enabled(),
                    "model.offload: expected none, activations or auto to train all weights (only frozen ones can wait "
                    "in the host's memory), found {}; change it, or set lora.rank",
                    word);
  VMOBA_CHECK_INPUT(
      !model::offloads_weights(offload) || config.parallel.shard * config.parallel.sequence == 1,
      "model.offload: expected none, activations or auto with parallel.shard {} and parallel.sequence {} (ranks that "
      "hold the frozen weights together gather them from each other), found {}; change it, or set parallel.data only",
      config.parallel.shard, config.parallel.sequence, word);
  VMOBA_CHECK_INPUT(!model::offloads_activations(offload) || config.model.recompute != model::Recompute::kNone,
                    "model.offload: expected none, weights or auto with model.recompute none (autograd keeps more of a "
                    "block than its input), found {}; change it, or set model.recompute=auto",
                    word);
}

}  // namespace

RootConfig load_root_config(const std::string& path, const std::vector<std::string>& overrides) {
  RootConfig config;
  RetiredKeys retired = retired_keys();
  const std::set<std::string> given = load_known_keys(path, overrides, retired, config);
  adopt_retired_keys(retired, config);
  expand_home(config);
  const std::string& weights = config.experts.empty() ? config.model.weights : config.experts.front().weights;
  model::take_stated_sizes(config.model, weights, keys_of_group(given, "model"));
  take_published_sampling(config.sample, config.model, keys_of_group(given, "sample"));
  for (const char* key : {"train.flow.embedded_guidance", "sample.embedded_guidance"})
    VMOBA_CHECK_INPUT(!given.contains(key) || is_resolved(given) || model::takes_guidance(config.model),
                      "{}: expected a model that takes a guidance scale as an input (model.guidance_embed of "
                      "hunyuan_video), found one that does not; leave the key out",
                      key);
  if (!given.contains("text.max_tokens")) config.text.max_tokens = model::published_max_tokens(config.text);
  if (!given.contains("lora.targets")) config.lora.targets = model::architecture_of(config.model).lora.default_targets;
  config.validate();
  model::add_learnt(config.model, config.attention);
  return config;
}

void validate_training(const RootConfig& config) {
  VMOBA_CHECK_INPUT(
      config.lora.enabled() || config.model.weights_dtype == "fp32" || config.model.weights_dtype == "bf16",
      "model.weights_dtype: expected fp32 or bf16 to train all weights, found {}; set one of them, or lora.rank to "
      "train adapters beside a frozen base",
      config.model.weights_dtype);
  VMOBA_CHECK_INPUT(!config.lora.enabled() || config.model.linear_compute == "bf16",
                    "model.linear_compute: expected bf16 with lora.rank above 0 (maps with adapters compute in bf16), "
                    "found {}; set it to bf16",
                    config.model.linear_compute);
  check_packed(config);
  check_offload(config);
  check_experts_are_trained(config);
  check_teacher(config);
}

std::string config_reference() {
  RootConfig config;
  return "# Configuration reference\n\nGenerated by `vmoba-train --config-reference`; do not edit. Every key can be "
         "set "
         "on the command line as `key.sub=value`, in a list of groups as `list[0].sub=value`.\n" +
         config_to_markdown([&](ConfigVisitor& v) { config.visit(v); });
}

}  // namespace vmoba
