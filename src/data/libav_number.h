// Numbers that libav copies from a file into fields of enumerations.
#pragma once
#include <cstring>

namespace vmoba::data {

// What the field holds. A damaged file may put a number there that the enumeration does not have; reading such a field
// as what it is declared would be undefined.
template <typename Enum>
int number_in(const Enum& field) {
  static_assert(sizeof(Enum) == sizeof(int));
  int number = 0;
  std::memcpy(&number, &field, sizeof number);
  return number;
}

}  // namespace vmoba::data
