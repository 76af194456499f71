// Bytes in the unit in which messages state memory.
#pragma once

namespace vmoba {

constexpr double gib(double bytes) {
  return bytes / double(1 << 30);
}

}  // namespace vmoba
