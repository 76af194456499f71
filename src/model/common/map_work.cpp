#include "model/common/map_work.h"

#include "model/architecture.h"

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

// In units of two bytes: an input is read and written in one byte, forward and, transposed, backward; a gradient is
// read and written once, and its bytes are read and written for its transpose. Hidden values are read and written in
// one byte forward instead of two. Backward reads them for the transpose of GELU of them, and for their gradient,
// beside that of GELU's result, where bf16 moves three times two bytes.
void add_quantising(const QuantisedValues& values, BlockActivations& block) {
  block.moved_forward += 1.5 * values.inputs - 0.5 * values.hidden;
  block.moved_backward += 1.5 * values.inputs + 2.5 * values.gradients + 2 * values.hidden;
}

}  // namespace vmoba::model
