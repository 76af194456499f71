#include "attention/full/full.h"
#include "attention/method.h"
#include "attention/vmoba/vmoba.h"
#include "core/check.h"

namespace vmoba::attention {

// One line per method.
const std::vector<const Method*>& methods() {
  static const std::vector<const Method*> table = {&full_method(), &vmoba_method()};
  return table;
}

int64_t query_tile(const LayerAttention& layer) {
  return layer.method->query_tile == nullptr ? 1 : layer.method->query_tile(layer);
}

const ExtraBranch* extra_branch(const LayerAttention& layer) {
  return layer.method->extra == nullptr ? nullptr : layer.method->extra(layer);
}

const Method& find_method(const std::string& name) {
  std::string known;
  for (const Method* method : methods()) {
    if (name == method->name) return *method;
    known += (known.empty() ? "" : ", ") + std::string(method->name);
  }
  throw_input("expected attention.backend to be one of {}, found '{}'", known, name);
}

}  // namespace vmoba::attention
