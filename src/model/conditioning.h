// What an image-to-video model is told about its images, for training and sampling alike; the layout of diffusers'
// WanImageToVideoPipeline.prepare_latents. By model.task:
//   t2v     nothing
//   i2v     the first frame: behind the latents' channels a mask and the latents of (frame, grey, grey, ...), and CLIP
//           tokens where model.image_dim is set (Wan2.1 I2V; Wan2.2 I2V-A14B without tokens)
//   flf2v   the same with the last frame too (Wan2.1 FLF2V)
//   ti2v    the first latent frame is given clean, at timestep 0 (Wan2.2 TI2V-5B); text to video without an image
// Architecture::image_input says which of these ways a model has for its task; HunyuanVideo's I2V has the first frame
// given clean, or the image's latents and a mask of one channel behind the latents (1.5: zeros without an image).
//
// Shape letters: B samples, C latent channels, K channels of the condition, T x H x W latents, F frames, I image
// tokens, M image width. Tensors are owned by whoever holds the struct.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/codec.h"
#include "model/dit.h"
#include "model/image_encoder.h"

namespace vmoba::model {

struct ImageCondition {
  at::Tensor channels_BKTHW;  // of the mask and the image's latents, in the model's order, fp32
  at::Tensor tokens_BIM;      // CLIP tokens, those of one image after those of the other
  at::Tensor first_BC1HW;     // clean latents of the first frame, in whose place they stand
  bool behind = false;        // or behind the latents' channels, with a mask, where other frames have zeros
  at::Tensor given_B;         // bool, samples that are given their first frame; undefined: all of them
};

// Whether the task needs a first and a last frame; ti2v takes a first frame where there is one.
bool needs_first_frame(const ModelConfig& config);
bool needs_last_frame(const ModelConfig& config);

// K: how many channels the model takes besides its noisy latents.
int64_t condition_channels(const ModelConfig& config, const CodecShape& codec);

// The condition from clean latents of the first frame, where the model is told about it by these
// (ImageInput::kFirstFrame, kLatentAndMask); without image tokens.
ImageCondition condition_of_latents(const ModelConfig& config, const at::Tensor& first_BC1HW);

// Tokens [B, I, M] of one image or two. Throws Error(kInput) where `encoder` is null.
at::Tensor encode_image_tokens(const ModelConfig& config, const ImageEncoder* encoder, const at::Tensor& first_BCHW,
                               const at::Tensor& last_BCHW = {});

// The condition of videos of `frames` frames. Images [B, 3, H, W] fp32 in [-1, 1] at the video's size; `last_BCHW` is
// looked at for flf2v only. `encoder` may be null where model.image_dim is 0 or `tokens_BIM` (defined: used as they
// are) is given. Throws Error(kInput) where the encoder or an image is missing. No gradients.
ImageCondition encode_condition(const ModelConfig& config, const Codec& codec, const ImageEncoder* encoder,
                                const at::Tensor& first_BCHW, const at::Tensor& last_BCHW, int64_t frames,
                                const at::Tensor& tokens_BIM = {});

// Tells the model a guidance scale where it takes one as an input.
void tell_guidance(const ModelConfig& config, double scale, DitInput& input);

// Tells the model the timesteps [B] that a step leads to where it is told those. For training they are the input's own:
// the velocity of flow matching is that of a step of no length.
void tell_next_timestep(const ModelConfig& config, const at::Tensor& next_timestep_B, DitInput& input);

// The model's input: latents [B, C, T, H, W] with the condition's channels behind them or their first frame replaced,
// timestep [B] or, with a given first frame, [B, T] with 0 in front.
DitInput conditioned_input(const at::Tensor& latents_BCTHW, const at::Tensor& timestep_B, const TextEmbedding& text,
                           const ImageCondition& condition);

// [B, T] in the dtype of `latents`: 1 for latent frames that the model makes, 0 for those given to it (ti2v). Undefined
// where it makes all of them.
at::Tensor made_frames(const at::Tensor& latents_BCTHW, const ImageCondition& condition);

}  // namespace vmoba::model
