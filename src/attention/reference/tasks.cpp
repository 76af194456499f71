#include "attention/reference/tasks.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <optional>

// This file alone is compiled with OpenMP: without it at::parallel_for is a serial loop.
#ifndef _OPENMP
#error "expected OpenMP for attention/reference/tasks.cpp"
#endif

namespace vmoba::attention::reference {

void for_each_task(int64_t count, bool on_cpu, const std::function<void(int64_t)>& task) {
  if (!on_cpu) {
    const at::NoGradGuard no_grad;
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::atomic<int64_t> next{0};
  const bool inference = c10::InferenceMode::is_enabled();  // a thread's own; its tensors change in that mode alone
  const auto worker = [&](int64_t, int64_t) {
    std::optional<c10::InferenceMode> mode;
    if (inference) mode.emplace(true);
    const at::NoGradGuard no_grad;
    for (int64_t i = next++; i < count; i = next++) task(i);
  };
  // Two workers at least: a range of one would run outside any parallel region, where MKL uses all threads.
  const int64_t workers = std::max<int64_t>(2, std::min<int64_t>(count, at::get_num_threads()));
  at::parallel_for(0, workers, 1, worker);
}

}  // namespace vmoba::attention::reference
