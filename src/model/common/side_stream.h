// A second queue of work of a device, for copies between it and the host beside its computing, and the host's memory
// for them. On a CPU there is one queue: everything is done at once, in the order of the calls.
//
// "The current stream" is the calling thread's of that device. Nothing here waits for the device but the destructor.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <memory>
#include <optional>

namespace vmoba::model {

class SideStream {
 public:
  // A place in the queue; null: behind what is done.
  using Mark = std::shared_ptr<c10::Event>;

  explicit SideStream(at::Device device);
  // Waits for what is under way.
  ~SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  at::Device device() const { return device_; }
  // What is begun from here on runs behind all that the current stream has been given.
  void follow_current();
  // to = from, of one dtype and contiguous; one of them on the device, the other from host_tensor(). Both must live,
  // and neither may change, until a stream that may free or change them has waited for a mark behind the copy.
  void copy(const at::Tensor& from, const at::Tensor& to);
  // Behind all that was begun.
  Mark mark() const;
  // What the current stream is given from here on runs behind the mark.
  void hold_current(const Mark& mark) const;

 private:
  at::Device device_;
  std::optional<c10::Stream> stream_;  // none on a CPU
};

// Memory of the host, page-locked where `device` is a GPU, of just that size: torch's own allocator rounds up to powers
// of two. Throws Error(kRuntime) where the system gives none.
at::Tensor host_tensor(at::IntArrayRef shape, at::ScalarType dtype, at::Device device);

}  // namespace vmoba::model
