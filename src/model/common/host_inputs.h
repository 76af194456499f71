// Inputs of recomputed blocks, in page-locked memory of the host between forward and backward. An input leaves while
// its block computes forward, and comes back while backward computes the block behind it: two are on the device at
// most. The host's memory is kept for later passes.
//
// Streams: copies run on a side stream. An input's memory on the device is given up where the next input leaves, behind
// its copy; the current stream waits for a copy back where the input is used. Nobody waits on the host.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

namespace vmoba::model {

class HostInputs {
 public:
  class Input;  // one of a block; its host memory is given back with the last handle
  using Handle = std::shared_ptr<Input>;

  explicit HostInputs(at::Device device);

  // Begins to copy x [any shape, contiguous] out. x must not change while the current stream's work of this block runs.
  Handle put(const at::Tensor& x);
  // The values on the device, without history, as often as wanted. Begins to bring back the input that was put before
  // this one, where its handle lives.
  at::Tensor take(const Handle& input);

  int64_t host_bytes() const;  // all that was ever needed at once

 private:
  struct Shared;
  void settle();

  std::shared_ptr<Shared> shared_;
  Handle leaving_;               // still on the device
  std::weak_ptr<Input> latest_;  // put last
};

}  // namespace vmoba::model
