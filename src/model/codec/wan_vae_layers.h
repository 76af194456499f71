// The layers of the Wan VAE (diffusers: AutoencoderKLWan), causal in time and run chunk after chunk.
//
// Shape letters: T frames of the chunk, H x W positions, C channels. Activations are one sample, frames first and
// channels last ([T, H, W, C], contiguous): convolutions see them as channels_last without a copy, 1x1 convolutions are
// matrix products, frames are appended by pointer. Layers own their weights and keep no state between calls: what the
// next chunk needs of this one is in FrameMemory.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/codec/codec_weights.h"
#include "model/codec/frame_memory.h"
#include "model/common/linear.h"

namespace vmoba::model {

// Convolution over (t, h, w) with an odd spatial kernel, zeros around the picture and past frames (zeros before the
// first) in front.
class CausalConv {
 public:
  CausalConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out, int64_t spatial_kernel);
  // x [T, H, W, in] -> [T, H, W, out].
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;
  // The same of silu(norm(x)), where norm is x / rms(x) * gamma over the channels.
  at::Tensor after_norm(const at::Tensor& x_THWC, const at::Tensor& gamma_C, FrameMemory& memory) const;

 private:
  at::Tensor run(const at::Tensor& joined_THWC) const;
  at::Tensor weight_, bias_;
};

class VaeResBlock {
 public:
  VaeResBlock(const TensorSource& source, const std::string& name, int64_t in, int64_t out);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  at::Tensor gamma1_C_, gamma2_C_;
  CausalConv conv1_, conv2_;
  std::optional<Linear> shortcut_;  // where the width changes
};

// Two residual blocks with attention of one head among the positions of each frame between them.
class VaeMiddle {
 public:
  VaeMiddle(const TensorSource& source, const std::string& name, int64_t width);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  VaeResBlock before_, after_;
  at::Tensor gamma_C_;
  Linear to_qkv_, proj_;
};

// Half the height and width, and half the frames where `temporal`; the first frame of a video stays one frame.
class VaeDownsample {
 public:
  VaeDownsample(const TensorSource& source, const std::string& name, int64_t width, bool temporal);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  at::Tensor weight_, bias_, time_weight_, time_bias_;
};

// Twice the height and width, and twice the frames where `temporal`; the first frame of a video stays one frame.
class VaeUpsample {
 public:
  VaeUpsample(const TensorSource& source, const std::string& name, int64_t in, int64_t out, bool temporal);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  std::optional<CausalConv> time_conv_;
  at::Tensor weight_, bias_;
};

// Wan2.2's shortcuts around a stage: means over groups of (channel, t, y, x), and their repetition.
// [T, H, W, C] -> [ceil(T/time), H/space, W/space, out]; zeros stand before a first frame that is not a whole group.
at::Tensor mean_shortcut(const at::Tensor& x_THWC, int64_t out, int64_t time, int64_t space);
// [T, H, W, C] -> [T*time, H*space, W*space, out]; of the first frame of a video only the last copy in time is kept.
at::Tensor repeat_shortcut(const at::Tensor& x_THWC, int64_t out, int64_t time, int64_t space, bool first_chunk);

}  // namespace vmoba::model
