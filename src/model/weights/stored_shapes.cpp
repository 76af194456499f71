#include "model/weights/stored_shapes.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"

namespace vmoba::model {

bool StoredShapes::has_any(const std::string& beginning) const {
  const auto next = files_.entries().lower_bound(beginning);
  return next != files_.entries().end() && next->first.starts_with(beginning);
}

int64_t StoredShapes::size(const std::string& name, size_t rank, size_t dimension) const {
  VMOBA_CHECK_INPUT(has(name), "expected a {} transformer at '{}', found no tensor '{}'", kind_, files_.folder(), name);
  const std::vector<int64_t>& shape = files_.info(name).shape;
  VMOBA_CHECK_INPUT(shape.size() == rank, "expected {} dimensions of '{}', found {}", rank, name, shape.size());
  return shape[dimension];
}

int64_t StoredShapes::blocks(const std::string& prefix) const {
  int64_t count = 0;
  for (auto next = files_.entries().lower_bound(prefix);
       next != files_.entries().end() && next->first.starts_with(prefix); ++next) {
    int64_t number = -1;
    const char* begin = next->first.c_str() + prefix.size();
    std::from_chars(begin, next->first.c_str() + next->first.size(), number);
    if (number < kMostBlocks) count = std::max(count, number + 1);
  }
  return count;
}

bool StoredShapes::blocks_have(const std::string& prefix, const std::string& part) const {
  return std::any_of(files_.entries().begin(), files_.entries().end(), [&](const auto& entry) {
    return entry.first.starts_with(prefix) && entry.first.find("." + part + ".") != std::string::npos;
  });
}

int64_t StoredShapes::stated_or(const nlohmann::json& beside, const char* key, int64_t of_tensors, int64_t most) const {
  const int64_t value = json_count(beside.value(key, nlohmann::json())).value_or(0);
  VMOBA_CHECK_INPUT(value <= most, "expected {} of at most {} in the config.json of '{}', found {}", key, most,
                    files_.folder(), value);
  return value > 0 ? value : of_tensors;
}

}  // namespace vmoba::model
