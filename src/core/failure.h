// An exception as a text, for who must go on to others before it is thrown.
#pragma once
#include <exception>
#include <string>

namespace vmoba {

// What `action` throws, or "".
template <typename Action>
std::string failure_of(Action action) {
  try {
    action();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

}  // namespace vmoba
