#include "sample/pipeline.h"

#include <ATen/ATen.h>

#include <fmt/ranges.h>

#include "core/check.h"
#include "core/log.h"
#include "core/random.h"
#include "model/common/dtype.h"
#include "model/image_text_encoder.h"
#include "sample/scheduler.h"

// Shape letters: B samples (always 1), C latent channels, T latent frames, L text tokens, E text width, F frames.
namespace vmoba::sample {
namespace {

struct LatentSize {
  int64_t channels, frames, height, width;
};

LatentSize latent_size(const SampleConfig& config, const model::CodecShape& codec, const model::Dit* dit) {
  const int64_t down = codec.frames(codec.latent_frames(config.frames));
  VMOBA_CHECK_INPUT(config.frames == down, "expected sample.frames = 1 + {}n for this codec, found {}; use {} or {}",
                    codec.temporal_stride, config.frames, down, down + codec.temporal_stride);
  VMOBA_CHECK_INPUT(config.height % codec.spatial_stride == 0 && config.width % codec.spatial_stride == 0,
                    "expected sample.height and sample.width to be multiples of {} for this codec, found {}x{}",
                    codec.spatial_stride, config.height, config.width);
  const LatentSize size{codec.channels, codec.latent_frames(config.frames), config.height / codec.spatial_stride,
                        config.width / codec.spatial_stride};
  if (dit == nullptr) return size;
  try {
    dit->grid(size.frames, size.height, size.width);
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

std::unique_ptr<Scheduler> scheduler_of(const SampleConfig& config) {
  return make_scheduler(config.scheduler, config.steps, config.shift, config.schedule);
}

}  // namespace

void check_sample(const SampleConfig& config, const model::CodecShape& codec, const model::Dit* dit) {
  latent_size(config, codec, dit);
  scheduler_of(config);
}

Pipeline::Pipeline(const PipelineParts& parts, const model::ModelConfig& model,
                   const std::vector<ExpertConfig>& experts, const SampleConfig& config,
                   const attention::AttentionConfig& attention, at::Device device)
    : parts_(parts),
      model_(model),
      experts_(experts),
      config_(config),
      attention_(attention),
      compute_dtype_(model::scalar_type(model.compute_dtype)),
      device_(device) {
  const size_t expected = std::max<size_t>(1, experts_.size());
  VMOBA_CHECK_INPUT(parts_.dits.size() == expected, "experts: expected {} transformer(s), found {}", expected,
                    parts_.dits.size());
  check_sample(config_, parts_.latents, parts_.dits.front());
  if (attention_.backend != "full" && attention_.dense_steps > 0) {
    log_info("sampling: full attention in the first {} of {} denoising steps (attention.dense_steps)",
             std::min(attention_.dense_steps, config_.steps), config_.steps);
  }
}

namespace {

at::Tensor batch_of_one(const at::Tensor& image_CHW, const SampleConfig& config, at::Device device) {
  if (!image_CHW.defined()) return {};
  VMOBA_CHECK_INPUT(image_CHW.dim() == 3 && image_CHW.size(0) == 3 && image_CHW.size(1) == config.height &&
                        image_CHW.size(2) == config.width,
                    "expected an image of {}x{} pixels (sample.height, sample.width), found {}", config.height,
                    config.width, fmt::join(image_CHW.sizes(), "x"));
  return image_CHW.unsqueeze(0).to(at::TensorOptions(device).dtype(at::kFloat));
}

// What a prompt that says what not to show stands beside, as in diffusers' pipeline.
at::Tensor black_like(const at::Tensor& image_BCHW) {
  return image_BCHW.defined() ? at::full_like(image_BCHW, -1) : image_BCHW;
}

}  // namespace

model::TextEmbedding Pipeline::embed(const std::string& prompt, const model::TextEmbedding& given,
                                     const at::Tensor& first_BCHW, const char* name) const {
  const at::Tensor& given_1LE = given.tokens_BLE;
  if (!given_1LE.defined()) {
    VMOBA_CHECK_INPUT(parts_.text != nullptr,
                      "expected a text encoder or {} among the given embeddings, found neither; set text.weights or "
                      "add it to --embeds",
                      name);
    return model::to_device(model::encode_text(*parts_.text, {prompt}, first_BCHW), device_);
  }
  VMOBA_CHECK_INPUT(given_1LE.dim() == 3 && given_1LE.size(0) == 1 && given_1LE.size(2) == model_.text_dim,
                    "{}: expected [1, L, {}] (model.text_dim), found {}", name, model_.text_dim,
                    fmt::join(given_1LE.sizes(), "x"));
  model::TextEmbedding out = given;
  model::visit_tensors(out, [](const char*, at::Tensor& tensor) {
    if (tensor.defined() && tensor.is_floating_point()) tensor = tensor.to(at::kFloat);
  });
  return model::to_device(out, device_);
}

at::Tensor Pipeline::starting_latents(const SampleRequest& request) const {
  const LatentSize size = latent_size(config_, parts_.latents, parts_.dits.front());
  const at::Tensor& given = request.given.latents_1CTHW;
  if (!given.defined()) return initial_noise(size, request, device_);
  const std::vector<int64_t> expected = {1, size.channels, size.frames, size.height, size.width};
  VMOBA_CHECK_INPUT(
      given.sizes() == at::IntArrayRef(expected),
      "latents: expected {} for {} frames of {}x{} (sample.frames, sample.height, sample.width), found {}",
      fmt::join(expected, "x"), config_.frames, config_.height, config_.width, fmt::join(given.sizes(), "x"));
  return given.to(at::TensorOptions(device_).dtype(at::kFloat));
}

model::ImageCondition Pipeline::condition_of(const SampleRequest& request) const {
  const at::Tensor first_BCHW = batch_of_one(request.first_CHW, config_, device_);
  if (!first_BCHW.defined() && !model::needs_first_frame(model_)) return {};
  VMOBA_CHECK_INPUT(model_.task != "t2v", "model.task: expected i2v, flf2v or ti2v for an image, found t2v");
  VMOBA_CHECK(parts_.codec != nullptr, "expected a codec for the image, found none");
  at::Tensor tokens_BIM = request.given.image_1IM;
  if (tokens_BIM.defined()) tokens_BIM = tokens_BIM.to(at::TensorOptions(device_).dtype(at::kFloat));
  return model::encode_condition(model_, *parts_.codec, parts_.image, first_BCHW,
                                 batch_of_one(request.last_CHW, config_, device_), config_.frames, tokens_BIM);
}

at::Tensor Pipeline::velocity(int64_t step, const std::vector<double>& timesteps, const at::Tensor& latents_BCTHW,
                              const Words& words, const model::ImageCondition& condition) const {
  const double timestep = timesteps[size_t(step)];
  const double next = size_t(step) + 1 < timesteps.size() ? timesteps[size_t(step) + 1] : 0;
  model::ForwardOptions options;
  options.compute_dtype = compute_dtype_;
  options.dense = step < attention_.dense_steps;
  options.stats = parts_.stats;
  options.attention = &attention_;
  const size_t expert = expert_at(experts_, timestep);
  model::Dit& dit = *parts_.dits[expert];
  const at::Tensor timestep_B = at::full({1}, timestep, latents_BCTHW.options());
  const at::Tensor next_B = at::full({1}, next, latents_BCTHW.options());
  const auto ask = [&](const model::TextEmbedding& text) {
    model::DitInput input = model::conditioned_input(latents_BCTHW, timestep_B, text, condition);
    model::tell_guidance(model_, config_.embedded_guidance, input);
    model::tell_next_timestep(model_, next_B, input);
    return dit.forward(input, options);
  };
  const at::Tensor velocity_BCTHW = ask(words.prompt);
  VMOBA_CHECK(velocity_BCTHW.sizes() == latents_BCTHW.sizes(),
              "expected the model's velocity to have the latents' shape, found another; model.out_channels and the "
              "codec's channels must agree");
  if (!words.negative.tokens_BLE.defined()) return velocity_BCTHW;
  const double own = experts_.empty() ? 0 : experts_[expert].guidance;
  const double guidance = own > 0 ? own : config_.guidance;
  const at::Tensor unconditional_BCTHW = ask(words.negative);
  return unconditional_BCTHW + (velocity_BCTHW - unconditional_BCTHW) * guidance;
}

at::Tensor Pipeline::generate_latents(const SampleRequest& request,
                                      const std::function<void(int64_t, int64_t)>& progress) {
  const at::NoGradGuard no_grad;
  const at::Tensor first_BCHW = batch_of_one(request.first_CHW, config_, device_);
  Words words{embed(request.prompt, request.given.prompt, first_BCHW, "prompt_embeds"), {}};
  if (config_.guidance > 1.0)
    words.negative =
        embed(config_.negative_prompt, request.given.negative, black_like(first_BCHW), "negative_prompt_embeds");
  const model::ImageCondition condition = condition_of(request);
  at::Tensor latents_BCTHW = starting_latents(request);
  const auto scheduler = scheduler_of(config_);
  for (int64_t step = 0; step < config_.steps; ++step) {
    const at::Tensor found = velocity(step, scheduler->timesteps(), latents_BCTHW, words, condition);
    latents_BCTHW = scheduler->step(step, found, latents_BCTHW);
    if (progress) progress(step + 1, config_.steps);
  }
  // A given first frame is itself, whatever the solver made of its velocity.
  if (condition.first_BC1HW.defined() && !condition.behind)
    latents_BCTHW = at::cat({condition.first_BC1HW.to(latents_BCTHW.options()), latents_BCTHW.slice(2, 1)}, 2);
  VMOBA_CHECK(at::isfinite(latents_BCTHW).all().item<bool>(),
              "expected finite latents after sampling, found NaN or infinity; the weights are broken, or "
              "model.compute_dtype has too little range (try fp32)");
  return latents_BCTHW;
}

at::Tensor Pipeline::decode(const at::Tensor& latents_1CTHW) const {
  VMOBA_CHECK(parts_.codec != nullptr, "expected a codec to decode latents, found none");
  const at::NoGradGuard no_grad;
  const at::Tensor video_CFHW = parts_.codec->decode(latents_1CTHW)[0];
  return ((video_CFHW.to(at::kFloat) * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0)
      .round()
      .to(at::kByte)
      .to(at::kCPU)
      .contiguous();
}

at::Tensor Pipeline::generate(const SampleRequest& request, const std::function<void(int64_t, int64_t)>& progress) {
  return decode(generate_latents(request, progress));
}

}  // namespace vmoba::sample
