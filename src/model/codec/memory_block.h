// Layers of the small codecs (TAEHV's, codec/taehv_network.h, and codec/patch_codec_network.h). Frames of a batch of
// videos are [T*B, C, H, W], those of the same time next to each other; any device, the weights' dtype. Gradients reach
// weights that require them. Weights are owned.
//
// Shape letters: N frames, C channels, H x W positions.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "model/codec/codec_weights.h"
#include "model/codec/frame_memory.h"

namespace vmoba::model {

// [T*B, C, H, W] -> [T/time*B, time*C, H, W]: the channels of consecutive frames side by side.
at::Tensor join_frames(const at::Tensor& x_NCHW, int64_t batch, int64_t time);
// The inverse.
at::Tensor part_frames(const at::Tensor& x_NCHW, int64_t batch, int64_t time);

// A convolution of single frames, without bias where that is undefined.
struct FrameConv {
  FrameConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out, int64_t kernel, bool bias,
            int64_t stride = 1);
  at::Tensor operator()(const at::Tensor& x_NCHW) const;

  at::Tensor weight, bias;
  int64_t stride;
};

// relu(x + convolutions of x and of the frame before it).
class MemoryBlock {
 public:
  MemoryBlock(const TensorSource& source, const std::string& name, int64_t width);
  at::Tensor operator()(const at::Tensor& x_NCHW, int64_t batch, FrameMemory& memory) const;

 private:
  FrameConv first_, second_, third_;
};

}  // namespace vmoba::model
