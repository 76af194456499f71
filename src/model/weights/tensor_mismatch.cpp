#include "model/weights/tensor_mismatch.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace vmoba::model {
namespace {

std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  const auto end = names.begin() + ptrdiff_t(std::min(kShown, names.size()));
  return fmt::format("{} ({}{})", names.size(), fmt::join(names.begin(), end, ", "),
                     names.size() > kShown ? ", ..." : "");
}

}  // namespace

void TensorMismatch::compare(const std::string& name, const std::vector<int64_t>& expected, const TensorInfo& found) {
  if (found.shape == expected && at::isFloatingType(found.dtype)) return;
  misshapen.push_back(fmt::format("{}: expected {}, found {} {}", name, fmt::join(expected, "x"),
                                  c10::toString(found.dtype), fmt::join(found.shape, "x")));
}

std::string TensorMismatch::text() const {
  return fmt::format("missing: {}, of another shape or type: {}, unknown: {}", some_of(missing), some_of(misshapen),
                     some_of(unknown));
}

}  // namespace vmoba::model
