#include "train/cache/encode_cache.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "config/clip_geometry.h"
#include "core/check.h"
#include "core/log.h"
#include "model/common/to_device.h"
#include "model/image_text_encoder.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLatents = "latents";
constexpr const char* kCondition = "condition";
constexpr const char* kFirstLatent = "first_latent";
constexpr const char* kImageTokens = "image_tokens";
// Before the names of a clip's own texts.
constexpr const char* kCaption = "caption.";
constexpr const char* kNoCaption = "no_caption.";

const std::string& existing_folder(const std::string& dir) {
  VMOBA_CHECK_INPUT(
      fs::is_directory(dir),
      "cache.dir: expected a folder that vmoba-encode wrote, found none at '{}'; run vmoba-encode with this "
      "configuration, or set cache.mode=off",
      dir);
  return dir;
}

// The entry `name` of each clip, fp32 [B, ...] on `device`.
at::Tensor stack_clips(const std::vector<NamedTensors>& clips, const char* name, at::Device device) {
  std::vector<at::Tensor> parts;
  for (const NamedTensors& clip : clips) {
    const auto found = clip.find(name);
    VMOBA_CHECK(found != clip.end(), "expected '{}' of an encoded clip, found none; remove cache.dir and encode again",
                name);
    parts.push_back(model::to_device(found->second, device).to(at::kFloat));
  }
  return at::stack(parts);
}

}  // namespace

std::vector<ClipVariant> cacheable_clips(const data::ClipPlan& plan, const data::DataConfig& config) {
  std::vector<ClipVariant> out;
  for (int64_t clip = 0; clip < int64_t(plan.clips.size()); ++clip) {
    if (plan.clips[size_t(clip)].random_start) continue;
    const double flip = plan.clips[size_t(clip)].held_out ? 0 : config.horizontal_flip;
    if (flip < 1) out.push_back({clip, false});
    if (flip > 0) out.push_back({clip, true});
  }
  return out;
}

std::vector<std::string> wanted_captions(const RootConfig& config, const data::ClipPlan& plan) {
  if (model::sees_images(config.text)) return {};  // a clip's texts stand with it
  std::vector<std::string> out;
  std::set<std::string> seen;
  const auto add = [&](const std::string& caption) {
    if (seen.insert(caption).second) out.push_back(caption);
  };
  if (config.train.flow.caption_dropout > 0) add("");
  for (const data::Clip& clip : plan.clips) add(clip.caption);
  if (config.train.validates()) {
    for (const std::string& prompt : config.sample.prompts) add(prompt);
    if (config.sample.guidance > 1) add(resolved(config.sample, config.model, config.text).negative_prompt);
  }
  return out;
}

NamedTensors clip_tensors(const model::ModelConfig& model, const EncodedBatch& one) {
  NamedTensors out = {{kLatents, one.x0_BCTHW[0]}};
  // For ti2v it is the first of the clip's own latents.
  if (one.condition.first_BC1HW.defined() && model.task != "ti2v") out[kFirstLatent] = one.condition.first_BC1HW[0];
  if (one.condition.channels_BKTHW.defined()) out[kCondition] = one.condition.channels_BKTHW[0];
  if (one.condition.tokens_BIM.defined()) out[kImageTokens] = one.condition.tokens_BIM[0];
  return out;
}

EncodedBatch batch_of_clips(const model::ModelConfig& model, const std::vector<NamedTensors>& clips,
                            const model::TextEmbedding& text, at::Device device) {
  EncodedBatch out;
  out.x0_BCTHW = stack_clips(clips, kLatents, device);
  out.text = model::to_device(text, device);
  if (model.task == "t2v") return out;
  if (model.task == "ti2v")
    out.condition = model::condition_of_latents(model, out.x0_BCTHW.slice(2, 0, 1));
  else if (clips.front().contains(kFirstLatent))
    out.condition = model::condition_of_latents(model, stack_clips(clips, kFirstLatent, device));
  else
    out.condition.channels_BKTHW = stack_clips(clips, kCondition, device);
  if (model.image_dim > 0) out.condition.tokens_BIM = stack_clips(clips, kImageTokens, device);
  return out;
}

NamedTensors text_tensors(const model::TextEmbedding& one) {
  model::TextEmbedding kept = one;
  kept.tokens_BLE = one.tokens_BLE.narrow(1, 0, one.length_B.item<int64_t>());
  kept.length_B = at::Tensor();
  if (one.glyphs_BJU.defined()) {
    kept.glyphs_BJU = one.glyphs_BJU.narrow(1, 0, one.glyph_length_B.item<int64_t>());
    kept.glyph_length_B = at::Tensor();
  }
  NamedTensors out;
  model::visit_tensors(kept, [&](const char* name, const at::Tensor& tensor) {
    if (tensor.defined()) out[name] = tensor[0].clone();
  });
  return out;
}

model::TextEmbedding text_of(const NamedTensors& tensors, int64_t max_tokens, int64_t width) {
  model::TextEmbedding out;
  model::visit_tensors(out, [&](const char* name, at::Tensor& tensor) {
    if (const auto found = tensors.find(name); found != tensors.end())
      tensor = found->second.to(at::kFloat).unsqueeze(0);
  });
  VMOBA_CHECK_INPUT(out.tokens_BLE.defined(),
                    "text: expected a cached embedding, found none; remove cache.dir and encode again");
  const at::Tensor rows_LE = out.tokens_BLE[0];
  VMOBA_CHECK_INPUT(
      rows_LE.dim() == 2 && rows_LE.size(0) <= max_tokens && rows_LE.size(1) == width,
      "text: expected cached embeddings of at most {} tokens and width {} (model.text_dim), found {} and {}",
      max_tokens, width, rows_LE.size(0), rows_LE.size(1));
  out.length_B = at::tensor({rows_LE.size(0)}, at::kLong);
  out.tokens_BLE = at::zeros({1, max_tokens, width}, at::kFloat);
  out.tokens_BLE[0].narrow(0, 0, rows_LE.size(0)).copy_(rows_LE);
  if (out.glyphs_BJU.defined()) out.glyph_length_B = at::tensor({out.glyphs_BJU.size(1)}, at::kLong);
  return out;
}

NamedTensors texts_beside(const RootConfig& config, const model::TextEncoder& encoder, const std::string& caption,
                          const at::Tensor& video_1CFHW) {
  NamedTensors out;
  if (!model::sees_images(config.text)) return out;
  const auto add = [&](const char* word, const std::string& text) {
    const at::NoGradGuard no_grad;
    for (auto& [name, tensor] : text_tensors(model::encode_text(encoder, {text}, video_1CFHW.select(2, 0))))
      out[word + name] = tensor.cpu();
  };
  add(kCaption, caption);
  if (config.train.flow.caption_dropout > 0) add(kNoCaption, "");
  return out;
}

model::TextEmbedding texts_of_clips(const std::vector<NamedTensors>& clips, const std::vector<std::string>& captions) {
  std::vector<NamedTensors> texts;
  int64_t longest = 0;
  for (size_t i = 0; i < clips.size(); ++i) {
    const bool dropped = captions[i].empty() && clips[i].contains(std::string(kNoCaption) + "embedding");
    const std::string word = dropped ? kNoCaption : kCaption;
    NamedTensors& text = texts.emplace_back();
    for (const auto& [name, tensor] : clips[i])
      if (name.starts_with(word)) text[name.substr(word.size())] = tensor;
    VMOBA_CHECK_INPUT(text.contains("embedding"),
                      "text: expected the text of an encoded clip, found none; remove cache.dir and encode again");
    longest = std::max(longest, text.at("embedding").size(0));
  }
  std::vector<model::TextEmbedding> parts;
  for (const NamedTensors& text : texts) parts.push_back(text_of(text, longest, text.at("embedding").size(1)));
  return model::stack_samples(parts);
}

EncodeCache::EncodeCache(const RootConfig& config, const data::ClipPlan& plan)
    : text_(config.text),
      text_width_(config.model.text_dim),
      tensors_(existing_folder(config.cache.dir)),
      files_(config.cache.dir, 0),
      keys_(config, files_) {
  for (const ClipVariant& variant : cacheable_clips(plan, config.data)) {
    const std::string key = keys_.clip(plan, variant.clip, variant.flip);
    coverage_.clips += 1;
    coverage_.clips_found += tensors_.has(key) || tensors_.failure(key) ? 1 : 0;
    clip_keys_[{variant.clip, variant.flip}] = key;
  }
  for (const data::Clip& clip : plan.clips) coverage_.random_clips += clip.random_start ? 1 : 0;
  for (const std::string& caption : wanted_captions(config, plan)) {
    coverage_.texts += 1;
    coverage_.texts_found += tensors_.has(keys_.text(caption)) ? 1 : 0;
  }
}

std::optional<data::EncodedClip> EncodeCache::find(int64_t clip, bool flip) const {
  const auto key = clip_keys_.find({clip, flip});
  if (key == clip_keys_.end()) return std::nullopt;
  if (auto tensors = tensors_.load(key->second)) return data::EncodedClip{std::move(*tensors), ""};
  if (const auto reason = tensors_.failure(key->second)) return data::EncodedClip{{}, *reason};
  return std::nullopt;
}

std::optional<model::TextEmbedding> EncodeCache::find_text(const std::string& caption) const {
  const auto tensors = tensors_.load(keys_.text(caption));
  if (!tensors) return std::nullopt;
  return text_of(*tensors, text_.max_tokens, text_width_);
}

std::unique_ptr<EncodeCache> open_encode_cache(const RootConfig& config, const data::ClipPlan& plan) {
  if (config.cache.dir.empty() || config.cache.mode == "off") return nullptr;
  auto cache = std::make_unique<EncodeCache>(config, plan);
  const EncodeCache::Coverage found = cache->coverage();
  const std::string there = fmt::format("{} of {} clips and {} of {} captions in {}", found.clips_found, found.clips,
                                        found.texts_found, found.texts, config.cache.dir);
  VMOBA_CHECK_INPUT(config.cache.mode != "require" || found.complete(),
                    "cache.mode require: expected every clip and caption, found {}{}; run vmoba-encode with this "
                    "configuration, or set cache.mode=auto",
                    there, found.random_clips > 0 ? " and clips with a random start (data.frame_extraction)" : "");
  log_info("cache: {}{}", there, found.complete() ? "" : "; the rest is encoded while training");
  return cache;
}

void check_captions(const RootConfig& config, const data::ClipPlan& plan) {
  // Without clips the plan itself has failed, and the cache says nothing.
  const auto cache = plan.clips.empty() ? nullptr : open_encode_cache(config, plan);
  if (cache && cache->coverage().complete()) return;
  check_text_width(config, model::check_text_encoder(config.text));
}

}  // namespace vmoba::train
