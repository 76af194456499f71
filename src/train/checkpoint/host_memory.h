// Memory of the host for copies of a device's tensors, page-locked where the device is a GPU.
//
// It consists of pieces of one size: the allocator of page-locked memory rounds requests up to powers of two, so that
// one request of a checkpoint's size could take twice as much.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace vmoba::train {

class HostMemory {
 public:
  static constexpr int64_t kPieceBytes = int64_t(1) << 28;

  // Room for `bytes` in all; what is there is kept.
  void reserve(int64_t bytes, bool page_locked);

  // Where byte `begin` of all lies, as far as `bytes` bytes or the end of its piece. uint8.
  at::Tensor run(int64_t begin, int64_t bytes) const;

 private:
  std::vector<at::Tensor> pieces_;
};

}  // namespace vmoba::train
