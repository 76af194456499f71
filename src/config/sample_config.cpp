#include "config/sample_config.h"

#include "model/architecture.h"

namespace vmoba {

void SampleConfig::visit(ConfigVisitor& v) {
  v.field("prompts", prompts, "Prompts of the validation videos; empty: the captions of the first clips.");
  v.field("negative_prompt", negative_prompt,
          "What the video should not show; used where guidance is above 1. `default`: the model's published one (none "
          "with text.type hash).");
  v.field("steps", steps, "Denoising steps. Not set: 12 with model.meanflow.", between(1, 1000));
  v.field("guidance", guidance,
          "Scale of classifier-free guidance: uncond + guidance * (cond - uncond). 1 turns it off and halves the time. "
          "Not set: 1 for hunyuan_video, 6 for hunyuan_video_15 (1 with model.meanflow).",
          at_least(1.0));
  v.field("embedded_guidance", embedded_guidance,
          "Guidance scale that a model with model.guidance_embed is told (HunyuanVideo 1.0); others have none.",
          at_least(0));
  v.field("shift", shift,
          "Shift of the noise schedule; higher spends more steps on the layout (3 to 5 for "
          "480p). Not set: 7 for hunyuan_video and with model.meanflow.",
          above(0.0));
  v.field("scheduler", scheduler, "Solver. `even_euler` takes even steps, shifted once (not set: HunyuanVideo's).",
          one_of({"unipc", "euler", "even_euler"}));
  v.field("schedule", schedule,
          "Noise levels of `unipc`: `wan` as in Wan's own repositories (and diffusers up to 0.35), `diffusers` as in "
          "diffusers from 0.37 on.",
          one_of({"wan", "diffusers"}));
  v.field("seed", seed, "Seed of the initial noise.", at_least(0));
  v.field("frames", frames, "Frames of a video; 1 + 4n with a codec of temporal stride 4.", at_least(1));
  v.field("height", height, "Height in pixels; a multiple of codec stride times patch size (16 for Wan2.1).",
          at_least(1));
  v.field("width", width, "Width in pixels; a multiple of codec stride times patch size (16 for Wan2.1).", at_least(1));
  v.field("fps", fps,
          "Frames per second of the written video: 16 for Wan2.1, 24 for Wan2.2 5B and HunyuanVideo (not "
          "set: 24 for the latter).",
          above(0.0));
}

void take_published_sampling(SampleConfig& config, const model::ModelConfig& model,
                             const std::set<std::string>& given) {
  const model::PublishedSampling published = model::architecture_of(model).sampling(model);
  if (!given.contains("steps")) config.steps = published.steps;
  if (!given.contains("guidance")) config.guidance = published.guidance;
  if (!given.contains("shift")) config.shift = published.shift;
  if (!given.contains("fps")) config.fps = published.fps;
  if (!given.contains("scheduler")) config.scheduler = published.scheduler;
}

SampleConfig resolved(const SampleConfig& config, const model::ModelConfig& model,
                      const model::TextEncoderConfig& text) {
  SampleConfig out = config;
  if (config.negative_prompt == "default")
    out.negative_prompt = text.type == "hash" ? "" : model::default_negative_prompt(model);
  return out;
}

}  // namespace vmoba
