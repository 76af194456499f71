#include "apps/eval/job.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "config/run_plan.h"
#include "core/check.h"
#include "core/log.h"
#include "data/dataset.h"
#include "data/hold_out.h"
#include "data/picture.h"
#include "data/video_writer.h"
#include "sample/similarity.h"

namespace vmoba::apps {
namespace {

namespace fs = std::filesystem;

// Words between spaces; spaces inside brackets or quotes part nothing.
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> out(1);
  int depth = 0;
  char quote = 0;
  for (const char c : text) {
    if (quote != 0)
      quote = c == quote ? 0 : quote;
    else if (c == '"' || c == '\'')
      quote = c;
    depth += c == '[' || c == '{' ? 1 : c == ']' || c == '}' ? -1 : 0;
    if (std::isspace(static_cast<unsigned char>(c)) && depth <= 0 && quote == 0)
      out.emplace_back();
    else
      out.back() += c;
  }
  std::erase(out, "");
  return out;
}

train::EvaluatedSetting setting_of(const std::string& text, attention::AttentionConfig attention) {
  std::vector<std::string> words = words_of(text);
  VMOBA_CHECK_INPUT(!words.empty(), "--set: expected 'NAME: key=value ...', found nothing");
  std::string name = text;
  if (words.front().ends_with(':')) {
    name = words.front().substr(0, words.front().size() - 1);
    words.erase(words.begin());
  }
  for (const std::string& word : words)
    VMOBA_CHECK_INPUT(word.starts_with("attention."),
                      "--set '{}': expected keys of attention: alone, because one load of the weights serves all "
                      "settings, found '{}'; give other keys once, behind the options",
                      name, word);
  load_config("", words, [&](ConfigVisitor& v) { v.group("attention", "", attention); });
  attention.validate();
  return {name, attention};
}

sample::SampleRequest request_of(const RootConfig& config, const data::Clip& clip, int64_t index) {
  sample::SampleRequest request{clip.caption, uint64_t(config.sample.seed), index};
  if (config.model.task == "t2v") return request;
  const auto frame_at = [&](double time_s) {
    return data::to_unit_range(data::read_picture(clip.path, time_s, config.sample.height, config.sample.width));
  };
  request.first_CHW = frame_at(clip.start_s);
  if (model::needs_last_frame(config.model))
    request.last_CHW = frame_at(clip.start_s + double(clip.frames - 1) / clip.fps);
  return request;
}

// The cache is a help here, not a demand: what it lacks is encoded.
std::unique_ptr<train::EncodeCache> open_cache(RootConfig config, const data::ClipPlan& plan) {
  if (config.cache.dir.empty() || !fs::is_directory(config.cache.dir)) return nullptr;
  if (config.cache.mode != "off") config.cache.mode = "auto";
  return train::open_encode_cache(config, plan);
}

}  // namespace

RootConfig eval_config(const EvalArguments& a) {
  RootConfig config = sample_config(a.model);
  if (!a.data.empty()) {
    config.validation.path = a.data;
    config.validation.holdout = 0;
  }
  if (a.clips > 0) config.validation.clips = a.clips;
  if (a.seed >= 0) config.validation.seed = a.seed;
  if (!a.sigmas.empty()) config.validation.sigmas = a.sigmas;
  config.validation.validate();
  VMOBA_CHECK_INPUT(config.validation.enabled(),
                    "--data: expected held-out clips, found neither it nor a group validate: in the configuration");
  return config;
}

std::vector<train::EvaluatedSetting> eval_settings(const EvalArguments& a, const RootConfig& config) {
  if (a.sets.empty()) return {{"checkpoint", config.attention}};
  std::vector<train::EvaluatedSetting> out;
  for (const std::string& text : a.sets) {
    out.push_back(setting_of(text, config.attention));
    for (size_t i = 0; i + 1 < out.size(); ++i)
      VMOBA_CHECK_INPUT(out[i].name != out.back().name, "--set: expected names of their own, found '{}' again",
                        out.back().name);
  }
  return out;
}

EvalSource::EvalSource(const RootConfig& config, at::Device device)
    : device(device),
      plan(data::joined_plans({}, plan_held_out(config))),
      cache(open_cache(config, plan)),
      codec(config.codec, device),
      text(config, device, cache.get()),
      image(config.model.image_dim > 0 ? train::make_lazy_image_encoder(config.image_encoder, device) : nullptr) {}

train::HeldOutEncoder EvalSource::encoder(const RootConfig& config) const {
  return {config, plan, codec, text, image.get(), device, cache.get(), 0};
}

std::vector<ComparedSample> compare_samples(const EvalArguments& a, const RootConfig& config, const EvalSource& source,
                                            const SampleModel& model,
                                            const std::vector<train::EvaluatedSetting>& settings) {
  std::vector<ComparedSample> out;
  if (!a.videos.empty()) fs::create_directories(a.videos);
  for (int64_t i = 0; i < std::min(a.samples, int64_t(source.plan.clips.size())); ++i) {
    at::Tensor first_latents, first_frames;
    for (const train::EvaluatedSetting& setting : settings) {
      sample::Pipeline pipeline(
          {model.borrowed(), source.codec.shape(), &source.codec, &source.text, source.image.get()}, config.model,
          config.experts, resolved(config.sample, config.model, config.text), setting.attention, source.device);
      const sample::SampleRequest request = request_of(config, source.plan.clips[size_t(i)], i);
      const at::Tensor latents = pipeline.generate_latents(request, {}), frames = pipeline.decode(latents);
      if (!first_latents.defined()) first_latents = latents, first_frames = frames;
      out.push_back({setting.name, request.prompt, "", sample::psnr_db(frames, first_frames),
                     sample::ssim(frames, first_frames), sample::relative_error(latents, first_latents)});
      log_info("sample {} under {}: PSNR {:.2f} dB, SSIM {:.4f}, latent error {:.4f}", i, setting.name,
               out.back().psnr_db, out.back().ssim, out.back().latent_error);
      if (a.videos.empty()) continue;
      out.back().video = fmt::format("{}/{}-{}.mp4", a.videos, i, &setting - settings.data());
      data::write_video(out.back().video, frames, config.sample.fps);
    }
  }
  return out;
}

}  // namespace vmoba::apps
