// What a causal network that sees a video chunk after chunk remembers between the chunks, and the norm of such
// networks. Activations are one sample, frames first and channels last: [T, H, W, C].
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace vmoba::model {

// One tensor for each layer that remembers, in the order in which the network runs them: the last input frames of a
// convolution, for example. One pass over one video needs one.
class FrameMemory {
 public:
  bool first_chunk() const { return chunk_ == 0; }
  // What the next layer remembers; undefined before it has remembered anything.
  at::Tensor& next();
  void end_chunk();

 private:
  std::vector<at::Tensor> frames_;
  size_t next_ = 0;
  int64_t chunk_ = 0;
};

// The last frames of a chunk as a copy: a view would keep the whole chunk alive.
at::Tensor last_frames(const at::Tensor& x_THWC, int64_t count);

// x / rms(x) * gamma over the channels, as diffusers' RMS norms of VAEs have it.
at::Tensor rms_norm_channels(const at::Tensor& x_THWC, const at::Tensor& gamma_C);

}  // namespace vmoba::model
