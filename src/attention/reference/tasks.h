// Independent tasks on the CPU's threads, each of them serial inside.
#pragma once
#include <cstdint>
#include <functional>

namespace vmoba::attention::reference {

// Runs task(0) ... task(count - 1), each on one thread with gradients off. On CPU (`on_cpu`) they share torch's
// threads, and the operations inside a task do not spread further: what a task computes cannot depend on how many
// threads there are. Otherwise they run in order on the calling thread. The first exception is rethrown.
void for_each_task(int64_t count, bool on_cpu, const std::function<void(int64_t)>& task);

}  // namespace vmoba::attention::reference
