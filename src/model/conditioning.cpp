#include "model/conditioning.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "model/architecture.h"

namespace vmoba::model {
namespace {

// [B, stride, T, H, W], 1 where a frame is given: entry (j, t) belongs to frame stride * (t - 1) + 1 + j, and all of
// t = 0 to the first frame, which the codec takes for as many.
at::Tensor mask_channels(const at::Tensor& latents_BCTHW, int64_t stride, bool last) {
  const int64_t frames = latents_BCTHW.size(2);
  at::Tensor mask = at::zeros({latents_BCTHW.size(0), stride, frames, latents_BCTHW.size(3), latents_BCTHW.size(4)},
                              latents_BCTHW.options());
  mask.select(2, 0).fill_(1);
  if (last) mask.select(2, frames - 1).select(1, stride - 1).fill_(1);
  return mask;
}

// (first, grey, ..., grey, last or grey), [B, 3, F, H, W]; grey is 0.
at::Tensor frames_and_grey(const at::Tensor& first_BCHW, const at::Tensor& last_BCHW, int64_t frames) {
  at::Tensor video =
      at::zeros({first_BCHW.size(0), 3, frames, first_BCHW.size(2), first_BCHW.size(3)}, first_BCHW.options());
  video.select(2, 0).copy_(first_BCHW);
  if (last_BCHW.defined()) video.select(2, frames - 1).copy_(last_BCHW);
  return video;
}

}  // namespace

at::Tensor encode_image_tokens(const ModelConfig& config, const ImageEncoder* encoder, const at::Tensor& first_BCHW,
                               const at::Tensor& last_BCHW) {
  VMOBA_CHECK_INPUT(encoder != nullptr,
                    "image_encoder.type: expected an encoder for a model with image tokens (model.image_dim {}), found "
                    "none; set it to clip with image_encoder.weights",
                    config.image_dim);
  const at::Tensor tokens_BIM = encoder->encode(first_BCHW);
  return last_BCHW.defined() ? at::cat({tokens_BIM, encoder->encode(last_BCHW)}, 1) : tokens_BIM;
}

bool needs_first_frame(const ModelConfig& config) {
  return config.task == "i2v" || config.task == "flf2v";
}

bool needs_last_frame(const ModelConfig& config) {
  return config.task == "flf2v";
}

int64_t condition_channels(const ModelConfig& config, const CodecShape& codec) {
  switch (architecture_of(config).image_input(config)) {
    case ImageInput::kMaskAndClip:
      return codec.temporal_stride + codec.channels;
    case ImageInput::kLatentAndMask:
      return codec.channels + 1;
    case ImageInput::kNone:
    case ImageInput::kFirstFrame:
      break;
  }
  return 0;
}

void tell_guidance(const ModelConfig& config, double scale, DitInput& input) {
  if (!takes_guidance(config)) return;
  const at::Tensor& latents = input.latents_BCTHW;
  input.conditions.guidance_B = at::full({latents.size(0)}, scale, latents.options().dtype(at::kFloat));
}

void tell_next_timestep(const ModelConfig& config, const at::Tensor& next_timestep_B, DitInput& input) {
  if (takes_next_timestep(config)) input.conditions.next_timestep_B = next_timestep_B;
}

ImageCondition condition_of_latents(const ModelConfig& config, const at::Tensor& first_BC1HW) {
  ImageCondition condition;
  condition.first_BC1HW = first_BC1HW;
  condition.behind = architecture_of(config).image_input(config) == ImageInput::kLatentAndMask;
  return condition;
}

ImageCondition encode_condition(const ModelConfig& config, const Codec& codec, const ImageEncoder* encoder,
                                const at::Tensor& first_BCHW, const at::Tensor& last_BCHW, int64_t frames,
                                const at::Tensor& tokens_BIM) {
  const at::NoGradGuard no_grad;
  ImageCondition condition;
  if (config.task == "t2v" || (config.task == "ti2v" && !first_BCHW.defined())) return condition;
  VMOBA_CHECK_INPUT(first_BCHW.defined(), "model.task {}: expected an image for the first frame, found none",
                    config.task);
  const bool last = needs_last_frame(config);
  VMOBA_CHECK_INPUT(!last || last_BCHW.defined(), "model.task flf2v: expected an image for the last frame, found none");
  const at::Tensor last_image_BCHW = last ? last_BCHW : at::Tensor();
  if (architecture_of(config).image_input(config) == ImageInput::kMaskAndClip) {
    const at::Tensor latents_BCTHW = codec.encode(frames_and_grey(first_BCHW, last_image_BCHW, frames));
    condition.channels_BKTHW =
        at::cat({mask_channels(latents_BCTHW, codec.shape().temporal_stride, last), latents_BCTHW}, 1);
  } else {
    condition = condition_of_latents(config, codec.encode(first_BCHW.unsqueeze(2)));
  }
  if (config.image_dim > 0)
    condition.tokens_BIM =
        tokens_BIM.defined() ? tokens_BIM : encode_image_tokens(config, encoder, first_BCHW, last_image_BCHW);
  return condition;
}

at::Tensor made_frames(const at::Tensor& latents_BCTHW, const ImageCondition& condition) {
  if (!condition.first_BC1HW.defined() || condition.behind) return {};
  at::Tensor made_BT = at::ones({latents_BCTHW.size(0), latents_BCTHW.size(2)}, latents_BCTHW.options());
  if (condition.given_B.defined())
    made_BT.select(1, 0).masked_fill_(condition.given_B.to(made_BT.device()), 0);
  else
    made_BT.select(1, 0).fill_(0);
  return made_BT;
}

namespace {

// [B, C + 1, T, H, W]: the first frame's latents and a mask of ones there, zeros in the other frames and in samples
// without an image.
at::Tensor channels_of_first(const at::Tensor& latents_BCTHW, const ImageCondition& condition) {
  std::vector<int64_t> shape = latents_BCTHW.sizes().vec();
  shape[1] += 1;
  at::Tensor out = at::zeros(shape, latents_BCTHW.options());
  const int64_t channels = latents_BCTHW.size(1);
  at::Tensor first_BKHW = out.select(2, 0);
  first_BKHW.narrow(1, 0, channels).copy_(condition.first_BC1HW.squeeze(2));
  first_BKHW.select(1, channels).fill_(1);
  if (condition.given_B.defined()) first_BKHW.mul_(condition.given_B.to(out.options()).view({-1, 1, 1, 1}));
  return out;
}

}  // namespace

DitInput conditioned_input(const at::Tensor& latents_BCTHW, const at::Tensor& timestep_B, const TextEmbedding& text,
                           const ImageCondition& condition) {
  DitInput input{latents_BCTHW, timestep_B, {text, condition.tokens_BIM}};
  if (condition.channels_BKTHW.defined())
    input.latents_BCTHW = at::cat({latents_BCTHW, condition.channels_BKTHW.to(latents_BCTHW.options())}, 1);
  if (condition.behind) {
    input.latents_BCTHW = at::cat({latents_BCTHW, channels_of_first(latents_BCTHW, condition)}, 1);
    if (condition.given_B.defined() && condition.tokens_BIM.defined())
      input.conditions.image_length_B = condition.given_B.to(at::kCPU, at::kLong) * condition.tokens_BIM.size(1);
  }
  if (const at::Tensor made_BT = made_frames(latents_BCTHW, condition); made_BT.defined()) {
    const at::Tensor made_B1T11 = made_BT.gt(0).unsqueeze(1).unsqueeze(3).unsqueeze(4);
    input.latents_BCTHW = at::where(made_B1T11, latents_BCTHW, condition.first_BC1HW.to(latents_BCTHW.options()));
    input.timestep_BG = timestep_B.unsqueeze(1) * made_BT.to(timestep_B.options());
  }
  return input;
}

}  // namespace vmoba::model
