#include "model/codec/frame_memory.h"

#include <ATen/ATen.h>

namespace vmoba::model {

at::Tensor& FrameMemory::next() {
  if (next_ == frames_.size()) frames_.emplace_back();
  return frames_[next_++];
}

void FrameMemory::end_chunk() {
  next_ = 0;
  ++chunk_;
}

at::Tensor last_frames(const at::Tensor& x_THWC, int64_t count) {
  return x_THWC.slice(0, x_THWC.size(0) - count).clone();
}

// diffusers divides by max(|x|, 1e-12); this is added to the mean square.
at::Tensor rms_norm_channels(const at::Tensor& x_THWC, const at::Tensor& gamma_C) {
  const int64_t channels = x_THWC.size(-1);
  return at::rms_norm(x_THWC, {channels}, gamma_C, 1e-24 / double(channels));
}

}  // namespace vmoba::model
