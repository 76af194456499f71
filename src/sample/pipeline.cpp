#include "sample/pipeline.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/log.h"
#include "core/random.h"
#include "sample/scheduler.h"

// Shape letters: B samples (always 1), C latent channels, T latent frames, L text tokens, E text width, F frames.
namespace vmoba::sample {
namespace {

struct LatentSize {
  int64_t channels, frames, height, width;
};

LatentSize latent_size(const SampleConfig& config, const model::CodecShape& codec, const model::Dit& dit) {
  const int64_t down = codec.frames(codec.latent_frames(config.frames));
  VMOBA_CHECK_INPUT(config.frames == down, "expected sample.frames = 1 + {}n for this codec, found {}; use {} or {}",
                    codec.temporal_stride, config.frames, down, down + codec.temporal_stride);
  VMOBA_CHECK_INPUT(config.height % codec.spatial_stride == 0 && config.width % codec.spatial_stride == 0,
                    "expected sample.height and sample.width to be multiples of {} for this codec, found {}x{}",
                    codec.spatial_stride, config.height, config.width);
  const LatentSize size{codec.channels, codec.latent_frames(config.frames), config.height / codec.spatial_stride,
                        config.width / codec.spatial_stride};
  try {
    dit.grid(size.frames, size.height, size.width);
  } catch (const Error& e) {
    // The model knows latent sizes only; the user wrote pixels.
    throw Error(e.kind(),
                fmt::format("{} (latents of sample.height {} and sample.width {}, {} pixels each way per latent)",
                            e.what(), config.height, config.width, codec.spatial_stride));
  }
  return size;
}

at::Tensor initial_noise(const LatentSize& size, const SampleRequest& request, at::Device device) {
  at::Tensor noise_BCTHW = at::empty({1, size.channels, size.frames, size.height, size.width}, at::kFloat);
  fill_normal(request.seed, "sample_noise", uint64_t(request.index), noise_BCTHW.data_ptr<float>(),
              noise_BCTHW.numel());
  return noise_BCTHW.to(device);
}

}  // namespace

void SampleConfig::visit(ConfigVisitor& v) {
  v.field("prompts", prompts, "Prompts of the validation videos; empty: the captions of the first clips.");
  v.field("negative_prompt", negative_prompt, "What the video should not show; used where guidance is above 1.");
  v.field("steps", steps, "Denoising steps.", between(1, 1000));
  v.field("guidance", guidance,
          "Scale of classifier-free guidance: uncond + guidance * (cond - uncond). 1 turns it off and halves the time.",
          at_least(1.0));
  v.field("shift", shift, "Shift of the noise schedule; higher spends more steps on the layout (3 to 5 for 480p).",
          above(0.0));
  v.field("scheduler", scheduler, "Solver.", one_of({"unipc", "euler"}));
  v.field("seed", seed, "Seed of the initial noise.", at_least(0));
  v.field("frames", frames, "Frames of a video; 1 + 4n with a codec of temporal stride 4.", at_least(1));
  v.field("height", height, "Height in pixels; a multiple of codec stride times patch size (16 for Wan2.1).",
          at_least(1));
  v.field("width", width, "Width in pixels; a multiple of codec stride times patch size (16 for Wan2.1).", at_least(1));
  v.field("fps", fps, "Frames per second of the written video: 16 for Wan2.1, 24 for Wan2.2 5B and HunyuanVideo.",
          above(0.0));
}

Pipeline::Pipeline(model::Dit& dit, const model::Codec& codec, const model::TextEncoder& text,
                   const SampleConfig& config, const attention::AttentionConfig& attention,
                   at::ScalarType compute_dtype, at::Device device)
    : dit_(dit),
      codec_(codec),
      text_(text),
      config_(config),
      attention_(attention),
      compute_dtype_(compute_dtype),
      device_(device) {
  latent_size(config_, codec_.shape(), dit_);
  make_scheduler(config_.scheduler, config_.steps, config_.shift);
  if (attention_.backend != "full" && attention_.dense_steps > 0) {
    log_info("sampling: full attention in the first {} of {} denoising steps (attention.dense_steps)",
             std::min(attention_.dense_steps, config_.steps), config_.steps);
  }
}

at::Tensor Pipeline::generate_latents(const SampleRequest& request,
                                      const std::function<void(int64_t, int64_t)>& progress) {
  const at::NoGradGuard no_grad;
  const bool guided = config_.guidance > 1.0;
  const at::Tensor text_BLE = text_.encode({request.prompt}).to(device_);
  const at::Tensor negative_BLE = guided ? text_.encode({config_.negative_prompt}).to(device_) : at::Tensor();
  at::Tensor latents_BCTHW = initial_noise(latent_size(config_, codec_.shape(), dit_), request, device_);

  const auto scheduler = make_scheduler(config_.scheduler, config_.steps, config_.shift);
  for (int64_t step = 0; step < config_.steps; ++step) {
    model::ForwardOptions options;
    options.compute_dtype = compute_dtype_;
    options.dense = step < attention_.dense_steps;
    const at::Tensor timestep_B = at::full({1}, scheduler->timesteps()[step], latents_BCTHW.options());
    at::Tensor velocity_BCTHW = dit_.forward({latents_BCTHW, timestep_B, text_BLE}, options);
    VMOBA_CHECK(velocity_BCTHW.sizes() == latents_BCTHW.sizes(),
                "expected the model's velocity to have the latents' shape, found another; model.out_channels and the "
                "codec's channels must agree");
    if (guided) {
      const at::Tensor unconditional_BCTHW = dit_.forward({latents_BCTHW, timestep_B, negative_BLE}, options);
      velocity_BCTHW = unconditional_BCTHW + (velocity_BCTHW - unconditional_BCTHW) * config_.guidance;
    }
    latents_BCTHW = scheduler->step(step, velocity_BCTHW, latents_BCTHW);
    if (progress) progress(step + 1, config_.steps);
  }
  VMOBA_CHECK(at::isfinite(latents_BCTHW).all().item<bool>(),
              "expected finite latents after sampling, found NaN or infinity; the weights are broken, or "
              "model.compute_dtype has too little range (try fp32)");
  return latents_BCTHW;
}

at::Tensor Pipeline::generate(const SampleRequest& request, const std::function<void(int64_t, int64_t)>& progress) {
  const at::Tensor latents_BCTHW = generate_latents(request, progress);
  const at::NoGradGuard no_grad;
  const at::Tensor video_CFHW = codec_.decode(latents_BCTHW)[0];
  return ((video_CFHW.to(at::kFloat) * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0)
      .round()
      .to(at::kByte)
      .to(at::kCPU)
      .contiguous();
}

}  // namespace vmoba::sample
