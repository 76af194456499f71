// What of a model waits in page-locked memory of the host while its device does not need it.
#pragma once
#include "core/choice.h"

namespace vmoba::model {

// model.offload. `auto` is decided before a model is made (train/forecast/memory_advice.h).
enum class Offload { kNone, kWeights, kActivations, kBoth, kAuto };
const Choices<Offload>& choices_of(Offload);

// The frozen weights of blocks (model/common/weight_ring.h).
inline bool offloads_weights(Offload offload) {
  return offload == Offload::kWeights || offload == Offload::kBoth;
}
// The inputs of blocks between forward and backward (model/common/host_inputs.h).
inline bool offloads_activations(Offload offload) {
  return offload == Offload::kActivations || offload == Offload::kBoth;
}

}  // namespace vmoba::model
