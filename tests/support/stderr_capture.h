// Runs `action` and returns what it wrote to stderr (descriptor 2), which is a file meanwhile, or a terminal of the
// given width. Colours are taken out: whether the log uses them was settled when it was made.
#pragma once
#include <functional>
#include <string>

namespace vmoba::test {

std::string capture_stderr(const std::function<void()>& action);
std::string capture_terminal(int columns, const std::function<void()>& action);

}  // namespace vmoba::test
