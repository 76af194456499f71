#include "model/common/map_work.h"

namespace vmoba::model {

bool is_map(const ParameterSpec& spec) {
  return spec.name.ends_with(".weight") && spec.shape.size() >= 2;
}

ForwardWork map_work(const ParameterSpec& spec, const MapUse& use) {
  ForwardWork work;
  work.module = spec.name.substr(0, spec.name.rfind('.'));
  work.rows = use.rows;
  work.on_tokens = use.on_tokens;
  work.flops = 2 * use.rows * double(spec.numel());
  if (use.kept) {
    work.result = work.module;
    work.values = double(spec.shape[0]);
  }
  return work;
}

}  // namespace vmoba::model
