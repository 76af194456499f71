#include "apps/sample/job.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "apps/sample/outputs.h"
#include "config/clip_geometry.h"
#include "config/experts.h"
#include "core/check.h"
#include "core/file_kind.h"
#include "core/log.h"
#include "data/dataset.h"
#include "data/picture.h"
#include "data/video_reader.h"
#include "model/adapter/lora_file.h"
#include "model/common/weight_ring.h"
#include "model/weights/safetensors.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checksums.h"
#include "train/checkpoint/manifest.h"

namespace vmoba::apps {
namespace {

namespace fs = std::filesystem;

// Of a checkpoint: whether its averaged weights are taken.
bool takes_average(const SampleArguments& a) {
  const bool lora = train::is_lora_checkpoint(a.checkpoint);
  return a.use_ema && fs::exists(a.checkpoint + (lora ? "/lora_ema" : "/transformer_ema"));
}

size_t trained_experts(const std::string& checkpoint) {
  const bool lora = train::is_lora_checkpoint(checkpoint);
  size_t count = 1;
  while (fs::exists(train::weights_path(checkpoint, count, lora, /*average=*/false))) ++count;
  return count;
}

// Takes the checkpoint's transformers in place of those that its run began with.
void use_trained_weights(const SampleArguments& a, RootConfig& config) {
  const auto trained = [&](size_t expert) {
    return train::weights_path(a.checkpoint, expert, /*lora=*/false, takes_average(a));
  };
  if (config.experts.empty()) config.model.weights = trained(0);
  for (size_t i = 0; i < std::min(config.experts.size(), trained_experts(a.checkpoint)); ++i)
    config.experts[i].weights = trained(i);
}

// A file of --lora and the expert that it names.
model::LoraSource lora_for(const std::string& text, size_t experts) {
  model::LoraSource source = model::lora_source(text);
  VMOBA_CHECK_INPUT(source.expert.value_or(0) < experts, "--lora: expected an expert of 1 .. {} before ':', found '{}'",
                    experts, text);
  return source;
}

// The files of --lora by expert. A file of two transformers ("transformer_2.") serves both.
std::vector<std::vector<model::AdapterFile>> added_loras(const SampleArguments& a, const RootConfig& config,
                                                         at::Device device) {
  std::vector<std::string> texts = a.loras;
  for (const std::string& path : a.loras_2) {
    log_warning("instead of --lora-2 {0} write --lora 2:{0}; the next release refuses the old option", path);
    texts.push_back("2:" + path);
  }
  const model::Architecture& architecture = model::architecture_of(config.model);
  std::vector<std::vector<model::AdapterFile>> out(expert_count(config));
  for (const std::string& text : texts) {
    const model::LoraSource source = lora_for(text, out.size());
    std::set<size_t> named = model::named_transformers(source.path, architecture);
    if (source.expert || out.size() == 1) named.clear();
    for (const size_t i : named.empty() ? std::set<size_t>{source.expert.value_or(0)} : named) {
      const std::optional<size_t> part = named.empty() ? source.expert : i;
      out[i].push_back({model::read_changes({source.path, part}, architecture, device), a.lora_strength, source.path});
    }
  }
  return out;
}

bool is_checkpoint(const std::string& folder) {
  return train::is_lora_checkpoint(folder) || fs::is_directory(folder + "/transformer");
}

// The weights that are read; what else the checkpoint holds may be damaged.
void check_whole(const SampleArguments& a) {
  const std::string& folder = a.checkpoint;
  if (!fs::exists(train::manifest_path(folder))) return;  // weights that somebody put together
  std::vector<std::string> problems;
  for (size_t i = 0; i < trained_experts(folder); ++i) {
    const std::string path = train::weights_path(folder, i, train::is_lora_checkpoint(folder), takes_average(a));
    const std::string read = path.substr(folder.size() + 1) + (fs::is_directory(path) ? "/" : "");
    for (std::string& problem : train::checkpoint_problems(folder, 0, 1, /*finite=*/true, read))
      problems.push_back(std::move(problem));
  }
  VMOBA_CHECK_INPUT(problems.empty(), "--checkpoint: '{}' is damaged: {}; take another one", folder,
                    fmt::join(problems, "; "));
}

// Headers alone, before anything large is loaded.
void check_loras(const SampleArguments& a, const RootConfig& config) {
  VMOBA_CHECK_INPUT(std::isfinite(a.lora_strength), "--lora-strength: expected a number, found {}", a.lora_strength);
  VMOBA_CHECK_INPUT(a.lora_strength == 1 || !a.loras.empty() || !a.loras_2.empty(),
                    "--lora-strength: expected --lora beside it, found none; the LoRA of a checkpoint has its own");
  for (const std::string& text : a.loras)
    model::named_transformers(lora_for(text, expert_count(config)).path, model::architecture_of(config.model));
}

// The named tensors of a file; others are refused, so that a misspelt one is not silently drawn instead.
std::vector<at::Tensor> read_tensors(const std::string& path, const std::vector<std::string>& names) {
  std::vector<at::Tensor> out(names.size());
  if (path.empty()) return out;
  const model::SafetensorsFile file(path);
  const std::set<std::string> known(names.begin(), names.end());
  for (const auto& [name, info] : file.tensors())
    VMOBA_CHECK_INPUT(known.contains(name), "'{}': expected tensors named {}, found '{}'", path, fmt::join(names, ", "),
                      name);
  for (size_t i = 0; i < names.size(); ++i)
    if (file.contains(names[i])) out[i] = file.tensor(names[i]).clone();
  return out;
}

at::Tensor read_image(const std::string& path, const SampleConfig& config) {
  if (path.empty()) return {};
  return data::to_unit_range(data::read_picture(path, 0, config.height, config.width));
}

void check_image(const std::string& path) {
  if (path.empty()) return;
  VMOBA_CHECK_INPUT(fs::exists(path), "expected an image at '{}', found {}", path, what_is_this(path));
  try {
    data::VideoReader(path, /*threads=*/1);
  } catch (const data::MediaError& e) {
    throw_input("expected an image or video at '{}', found {}", path, e.what());
  }
}

// Browsers and libav show a GIF's frames for 2/100 s at least.
void check_rate(const std::string& path, double fps) {
  constexpr double kFastestGif = 50;
  VMOBA_CHECK_INPUT(
      fs::path(path).extension() != ".gif" || fps <= kFastestGif,
      "sample.fps: expected at most {} for '{}', whose frames last hundredths of a second, found {}; write "
      ".mp4",
      kFastestGif, path, fps);
}

// Images that the model would not take, or not look at.
void check_images(const VideoOrder& order, const std::string& task) {
  for (const std::string& image : {order.image, order.last_image}) check_image(image);
  VMOBA_CHECK_INPUT(order.image.empty() || task != "t2v",
                    "model.task: expected i2v, flf2v or ti2v for an image, found t2v");
  VMOBA_CHECK_INPUT(!order.image.empty() || task == "t2v" || task == "ti2v",
                    "model.task {}: expected an image for the first frame, found none", task);
  VMOBA_CHECK_INPUT(!order.last_image.empty() || task != "flf2v",
                    "model.task flf2v: expected an image for the last frame, found none");
  VMOBA_CHECK_INPUT(order.last_image.empty() || task == "flf2v",
                    "model.task: expected flf2v for the image of the last frame, found {}", task);
}

// A file of tensors with 'latents' alone, or with 'latents' among the embeddings.
const std::vector<std::string> kLatentNames = {"latents"};
// The names are those of diffusers' pipelines.
const std::vector<std::string> kEmbedNames = {"prompt_embeds",
                                              "negative_prompt_embeds",
                                              "image_embeds",
                                              "latents",
                                              "prompt_attention_mask",
                                              "pooled_prompt_embeds",
                                              "negative_prompt_attention_mask",
                                              "negative_pooled_prompt_embeds"};

// The mask is of ones in front: their number is the length.
model::TextEmbedding given_text(const at::Tensor& tokens, const at::Tensor& mask, const at::Tensor& pooled) {
  model::TextEmbedding out{tokens};
  if (mask.defined()) {
    const at::Tensor ones = mask.to(at::kLong);
    VMOBA_CHECK_INPUT(tokens.defined() && ones.dim() == 2 && ones.size(0) == tokens.size(0) &&
                          ones.size(1) == tokens.size(1) && ones.cumprod(1).equal(ones) &&
                          ones.select(1, 0).all().item<bool>(),
                      "--embeds: expected a mask of ones and then zeros for each token of the text, found {}",
                      fmt::join(mask.sizes(), "x"));
    out.length_B = ones.sum(1);
  }
  out.pooled_BP = pooled;
  return out;
}

}  // namespace

SampleArguments with_checkpoint(SampleArguments a) {
  if (a.checkpoint.empty() || is_checkpoint(a.checkpoint)) return a;
  const std::vector<int64_t> steps = train::checkpoint_steps(a.checkpoint);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const std::string newest = train::checkpoint_path(a.checkpoint, *step);
    if (!is_checkpoint(newest)) continue;
    log_info("--checkpoint: {} is the newest checkpoint of {}", newest, a.checkpoint);
    a.checkpoint = newest;
    return a;
  }
  throw_input(
      "--checkpoint: expected a folder with transformer/ or lora/, and state/, or a run with such checkpoints, found "
      "none at '{}'",
      a.checkpoint);
}

RootConfig sample_config(const SampleArguments& a) {
  VMOBA_CHECK_INPUT(a.checkpoint.empty() != a.config.empty(), "expected --checkpoint or --config, found {}",
                    a.config.empty() ? "neither" : "both");
  if (!a.checkpoint.empty()) check_whole(a);
  RootConfig config =
      load_root_config(a.checkpoint.empty() ? a.config : a.checkpoint + "/state/config.yaml", a.overrides);
  if (a.seed) config.sample.seed = *a.seed >= 0 ? *a.seed : drawn_seed();
  if (!a.negative.empty()) config.sample.negative_prompt = a.negative;
  if (!a.checkpoint.empty() && !train::is_lora_checkpoint(a.checkpoint)) use_trained_weights(a, config);
  for (size_t i = 0; i < expert_count(config); ++i)
    VMOBA_CHECK_INPUT(!expert_model(config, i).weights.empty(),
                      "{}: expected pretrained weights to sample from, found none; set it or give --checkpoint",
                      config.experts.empty() ? "model.weights" : fmt::format("experts[{}].weights", i));
  clip_geometry(config);  // codec and model agree
  check_loras(a, config);
  return config;
}

std::vector<model::Dit*> SampleModel::borrowed() const {
  std::vector<model::Dit*> out;
  for (const auto& dit : dits) out.push_back(dit.get());
  return out;
}

SampleModel load_sample_model(const SampleArguments& a, const RootConfig& config, at::Device device) {
  std::vector<std::vector<model::AdapterFile>> added = added_loras(a, config, device);
  const bool lora = !a.checkpoint.empty() && train::is_lora_checkpoint(a.checkpoint);
  const model::Architecture& architecture = model::architecture_of(config.model);
  const auto slots = model::offloads_weights(config.model.offload) ? std::make_shared<model::RingSlots>(device)
                                                                   : std::shared_ptr<model::RingSlots>();
  SampleModel out;
  for (size_t i = 0; i < expert_count(config); ++i) {
    const model::ModelConfig model = expert_model(config, i);
    if (slots) out.rings.push_back(std::make_unique<model::WeightRing>(slots));
    out.dits.push_back(model::make_dit(model, config.attention, uint64_t(config.seed), device,
                                       slots ? out.rings.back().get() : nullptr));
    std::vector<model::Adapter> adapters;
    if (lora && i < trained_experts(a.checkpoint))
      adapters = train::load_adapters(a.checkpoint, config.lora, architecture, i, takes_average(a), device);
    for (model::Adapter& adapter : model::merged_adapters(std::move(added[i]), out.dits.back()->parameters()))
      adapters.push_back(std::move(adapter));
    if (!adapters.empty()) out.dits.back()->attach(adapters);
    log_info("weights: {}", model.weights);
  }
  return out;
}

std::vector<VideoOrder> sample_orders(const SampleArguments& a, const RootConfig& config) {
  VMOBA_CHECK_INPUT(!a.seed || *a.seed >= -1, "--seed: expected 0 or more, or -1 for one that is drawn, found {}",
                    *a.seed);
  VMOBA_CHECK_INPUT(a.rank < a.ranks, "--rank: expected less than --ranks ({}), found {}", a.ranks, a.rank);
  VideoOrder common;
  common.prompt = a.prompt;
  common.image = a.image;
  common.last_image = a.last_image;
  common.settings = config.sample;
  common.seed = config.sample.seed;
  std::vector<VideoOrder> orders = {common};
  if (!a.prompts.empty()) {
    VMOBA_CHECK_INPUT(a.prompt.empty() && a.latents.empty() && a.embeds.empty() && a.output_latents.empty(),
                      "--prompts: expected none of --prompt, --latents, --embeds and --output-latents beside it, which "
                      "are for one video, found one");
    orders = read_prompts(a.prompts, common);
  }
  const bool only_latents = a.out.empty() && !a.output_latents.empty();
  const std::vector<std::string> names =
      output_names(a.out.empty() ? "sample.mp4" : a.out, orders, /*of_file=*/!a.prompts.empty());
  const model::CodecShape codec = model::codec_shape(config.codec);
  for (size_t i = 0; i < orders.size(); ++i) {
    orders[i].out = only_latents ? "" : names[i];
    if (!only_latents) check_video_output(names[i], orders[i].settings.frames);
    sample::check_sample(orders[i].settings, codec, nullptr);
    if (!only_latents) check_rate(names[i], orders[i].settings.fps);
    check_images(orders[i], config.model.task);
  }
  if (!a.output_latents.empty()) check_output_folder(a.output_latents);
  std::vector<VideoOrder> own;
  for (size_t i = size_t(a.rank); i < orders.size(); i += size_t(a.ranks)) own.push_back(std::move(orders[i]));
  return own;
}

sample::SampleRequest sample_request(const SampleArguments& a, const VideoOrder& order) {
  sample::SampleRequest request;
  request.prompt = order.prompt;
  request.seed = uint64_t(order.seed);
  request.index = order.index;
  request.first_CHW = read_image(order.image, order.settings);
  request.last_CHW = read_image(order.last_image, order.settings);
  const std::vector<at::Tensor> embeds = read_tensors(a.embeds, kEmbedNames);
  const std::vector<at::Tensor> latents = read_tensors(a.latents, kLatentNames);
  request.given = {latents[0].defined() ? latents[0] : embeds[3], given_text(embeds[0], embeds[4], embeds[5]),
                   given_text(embeds[1], embeds[6], embeds[7]), embeds[2]};
  VMOBA_CHECK_INPUT(!order.prompt.empty() || request.given.prompt.tokens_BLE.defined(),
                    "expected --prompt, --prompts or --embeds with prompt_embeds, found none");
  return request;
}

}  // namespace vmoba::apps
