// Work that is cut into parts, on threads of its own.
#pragma once
#include <cstdint>
#include <functional>

namespace vmoba {

// Runs part(0) ... part(count - 1), each once, on up to `threads` threads, the calling one among them. Returns when all
// have run; the first exception is rethrown then, and parts that had not begun are left out.
void for_each_part(int64_t count, int64_t threads, const std::function<void(int64_t)>& part);

}  // namespace vmoba
