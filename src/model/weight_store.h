// Where the parameters of a model are while nothing uses them: in parts on several ranks (src/train/dist, after
// Rajbhandari et al. 1910.02054, stage 3, and Zhao et al. 2304.11277), or in the host's memory
// (model/common/weight_ring.h). Whole parameters are on the model's device only while they are used. Models see this
// interface only.
//
// Parameters that are used together are a unit. Unit 0 is used throughout a forward pass and its backward; the others
// are gathered where they are used, in the order of their numbers, and once more, the other way round, where backward
// recomputes what used them. Between ranks gather() is collective: all use units in one order.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace vmoba::model {

struct StoredParameter {
  at::Tensor part;  // from keep()
  std::vector<int64_t> shape;
  bool in_compute_dtype = false;  // may travel and be used in the compute dtype, where that is the narrower one
  // A matrix that enters products as an fp8 factor alone (common/fp8_factor.h): may travel as one, and be used as the
  // values that it stands for.
  bool fp8_factor = false;
};

class WeightStore {
 public:
  virtual ~WeightStore() = default;
  // What is held of `whole` here, a new tensor. Of ranks that share it: a run of ceil(values / ranks) of its flattened
  // values or a few more, the same number on each rank; zeros behind the last value.
  virtual at::Tensor keep(const at::Tensor& whole) const = 0;
  // Shares what is held. Returns the unit's number.
  virtual size_t add_unit(std::vector<StoredParameter> parameters) = 0;
  // The unit's whole parameters on the model's device. `parts` are the unit's, or those detached: where they require
  // grad, backward adds the sum of the ranks' gradients to the .grad of the unit's parts, not of `parts`. `again`:
  // within backward.
  virtual std::vector<at::Tensor> gather(size_t unit, at::TensorList parts, at::ScalarType compute_dtype,
                                         bool again) = 0;
};

}  // namespace vmoba::model
