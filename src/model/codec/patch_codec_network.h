// Encoder and decoder of the small codec that this project trains (codec/patch_codec.h): what they do to one chunk of a
// batch of videos.
//
// A patch of 4x8x8 pixels goes through a linear map to 16 channels and back, and convolutions at the latents' positions
// correct both ways. The linear maps begin as the principal components of patches (train/codec/principal_patches.h), so
// that training begins with a good codec; a few layers at twice the positions smooth the seams of patches.
//
// Layers work on single latent frames, but for blocks that also see what they saw of the frame before, so that a video
// may come chunk after chunk. Frames of a batch are [F*B, C, H, W], those of the same time next to each other; any
// device. Gradients reach weights that require them. Weights are owned; the linear maps may be fp32 where all else is
// bf16, and run in their own dtype.
//
// Shape letters: F frames, T latent frames, B videos, C channels, H x W pixels, h x w latent positions, P values of a
// patch, Z latent channels.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/codec.h"
#include "model/codec/memory_block.h"

namespace vmoba::model {

constexpr int64_t kPatchFrames = 4, kPatchSide = 8;  // a patch: frames, pixels a side
constexpr int64_t kPatchValues = 3 * kPatchFrames * kPatchSide * kPatchSide;

struct PatchCodecConfig {
  int64_t latent_channels = 16;
  int64_t encoder_width = 80, encoder_blocks = 1;
  int64_t decoder_width = 112, decoder_blocks = 3;
  int64_t fine_width = 48, fine_blocks = 2;  // at twice the positions

  CodecShape shape() const { return {latent_channels, kPatchFrames, kPatchSide}; }
  // Throws Error(kInput) where a width is out of range; `origin` names the file.
  void validate(const std::string& origin) const;
};

// Frames [4T*B, 3, H, W] -> patches [T*B, P, h, w], and back.
at::Tensor to_patches(const at::Tensor& frames_NCHW, int64_t batch);
at::Tensor from_patches(const at::Tensor& patches_NPHW, int64_t batch);

class PatchEncoder {
 public:
  PatchEncoder(const PatchCodecConfig& config, const TensorSource& source);
  // Frames [4T*B, 3, H, W], fp32 in [0, 1] -> latents [T*B, Z, h, w], fp32.
  at::Tensor operator()(const at::Tensor& frames_NCHW, int64_t batch, FrameMemory& memory) const;

 private:
  FrameConv linear_, conv_in_;
  std::vector<MemoryBlock> blocks_;
  FrameConv conv_out_;
};

class PatchDecoder {
 public:
  PatchDecoder(const PatchCodecConfig& config, const TensorSource& source);
  // Latents [T*B, Z, h, w], fp32 -> frames [4T*B, 3, H, W], fp32, not clamped.
  at::Tensor operator()(const at::Tensor& latents_NZHW, int64_t batch, FrameMemory& memory) const;

 private:
  FrameConv linear_, conv_in_;
  std::vector<MemoryBlock> blocks_;
  FrameConv enlarge_;
  std::vector<MemoryBlock> fine_blocks_;
  FrameConv conv_out_;
};

// Names and shapes of all tensors.
std::vector<ParameterSpec> patch_codec_specs(const PatchCodecConfig& config);

}  // namespace vmoba::model
