// Encoder and decoder of TAEHV (github.com/madebyollin/taehv, taehv.py): what they do to one chunk of a batch of
// videos.
//
// All layers work on single frames, but for blocks that also see what they saw of the frame before, so that a video may
// come chunk after chunk; how it is cut changes nothing but memory. Frames of a batch are [T*B, C, H, W], those of the
// same time next to each other; any device, the weights' dtype. Gradients reach weights that require them. Weights are
// owned.
//
// Shape letters: T frames, B videos, C channels, H x W positions, P values of a patch, Z latent channels.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/codec/memory_block.h"
#include "model/codec/taehv_config.h"

namespace vmoba::model {

class TaehvEncoder {
 public:
  TaehvEncoder(const TaehvConfig& config, const TensorSource& source);
  // Frames [T*B, P, H, W] in [0, 1], T a multiple of the temporal stride -> latents [T/stride*B, Z, H/8, W/8].
  at::Tensor operator()(const at::Tensor& frames_NPHW, int64_t batch, FrameMemory& memory) const;

 private:
  struct Stage {
    int64_t time;  // frames that become one
    FrameConv pool, down;
    std::vector<MemoryBlock> blocks;
  };
  FrameConv conv_in_;
  std::vector<Stage> stages_;
  FrameConv conv_out_;
};

class TaehvDecoder {
 public:
  TaehvDecoder(const TaehvConfig& config, const TensorSource& source);
  // Latents [T*B, Z, h, w] -> frames [T*stride*B, P, 8h, 8w], not clamped. The first stride - 1 frames of a video are
  // not part of it.
  at::Tensor operator()(const at::Tensor& latents_NZHW, int64_t batch, FrameMemory& memory) const;

 private:
  struct Stage {
    int64_t time;  // frames that one becomes
    std::vector<MemoryBlock> blocks;
    FrameConv grow, narrow;
  };
  FrameConv conv_in_;
  std::vector<Stage> stages_;
  FrameConv conv_out_;
};

// Names and shapes of all tensors, as in the published files.
std::vector<ParameterSpec> taehv_specs(const TaehvConfig& config);

}  // namespace vmoba::model
