// What a weight file lacks and has too much of, collected over all tensors and then said at once.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/weights/safetensors.h"

namespace vmoba::model {

struct TensorMismatch {
  std::vector<std::string> missing, misshapen, unknown;

  // Notes a tensor of another shape, or of a type that is no floating-point one.
  void compare(const std::string& name, const std::vector<int64_t>& expected, const TensorInfo& found);
  bool none() const { return missing.empty() && misshapen.empty() && unknown.empty(); }
  // "missing: 1 (a), of another shape or type: 0 (), unknown: 7 (b, c, d, e, f, ...)"
  std::string text() const;
};

}  // namespace vmoba::model
