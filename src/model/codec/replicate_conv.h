// The causal 3x3x3 convolution of HunyuanVideo's VAEs: the first frame is repeated twice in front, the border pixels
// once around, and nothing looks ahead. Its input is made where it is needed, a few frames at a time, so that norm,
// activation and upsampling before it need no tensor of their own.
//
// Shape letters: T frames, H x W positions, C channels. Activations are one sample, [T, H, W, C], contiguous.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>

#include "model/codec/codec_weights.h"

namespace vmoba::model {

// Writes the frames from `first` on of a convolution's input into `out` [T, H, W, C], which may be strided.
using FrameSource = std::function<void(int64_t first, const at::Tensor& out_THWC)>;
// That copies them from a tensor.
FrameSource frames_of(const at::Tensor& x_THWC);

struct FrameSize {
  int64_t frames = 0, height = 0, width = 0;
};

// Frames [T, H, W, C] with one pixel repeated around: [T, H+2, W+2, C]; `inside` writes the middle.
at::Tensor repeat_border(int64_t frames, int64_t height, int64_t width, int64_t channels,
                         const at::TensorOptions& options, const std::function<void(const at::Tensor& out)>& inside);

class ReplicateConv {
 public:
  // `stride` along (t, h, w). The tensors are "<name>.weight" and "<name>.bias".
  ReplicateConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out,
                std::array<int64_t, 3> stride = {1, 1, 1});

  // All frames of an input of that size -> [ceil(T/st), ceil(H/sh), ceil(W/sw), out]. `chunk_frames` frames of the
  // output are made at a time; 0: what some 256 MB hold.
  at::Tensor operator()(const FrameSize& size, const FrameSource& source, int64_t chunk_frames = 0) const;
  at::Tensor operator()(const at::Tensor& x_THWC) const;
  // Frames with their two past frames in front and the border around them, [T+2, H+2, W+2, in] -> [T, H, W, out].
  at::Tensor padded(const at::Tensor& joined_THWC) const;

 private:
  at::Tensor weight_, bias_;
  std::array<int64_t, 3> stride_;
};

}  // namespace vmoba::model
