// How much memory CPU tensors need while something is computed.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <functional>
#include <memory>

namespace vmoba::test {

// Bytes of CPU tensors that the current thread holds, and the most it held.
class MemoryCounter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    held += bytes;
    peak = std::max(peak, held);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t held = 0, peak = 0;
};

inline int64_t peak_bytes(const std::function<at::Tensor()>& work, int64_t& result_bytes) {
  const auto counter = std::make_shared<MemoryCounter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  result_bytes = int64_t(work().nbytes());
  return counter->peak;
}

}  // namespace vmoba::test
