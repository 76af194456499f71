#include "model/offload.h"

namespace vmoba::model {

const Choices<Offload>& choices_of(Offload) {
  static const Choices<Offload> table("model.offload", {{Offload::kNone, "none"},
                                                        {Offload::kWeights, "weights"},
                                                        {Offload::kActivations, "activations"},
                                                        {Offload::kBoth, "both"},
                                                        {Offload::kAuto, "auto"}});
  return table;
}

}  // namespace vmoba::model
