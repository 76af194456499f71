// Several ranks hold the parameters of one model together: each keeps an equal run of every parameter's flattened
// values (its part), and whole parameters exist only while they are used (Rajbhandari et al. 1910.02054, stage 3; Zhao
// et al. 2304.11277). Models see this interface only; who moves the values is src/train/dist's affair.
//
// Parameters that are used together are a unit. Unit 0 is used throughout a forward pass and its backward; the others
// are gathered where they are used, in the order of their numbers, and once more, the other way round, where backward
// recomputes what used them. gather() is collective over the ranks: all use units in one order.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace vmoba::model {

struct ShardedParameter {
  at::Tensor part;  // from own_part()
  std::vector<int64_t> shape;
  bool in_compute_dtype = false;  // may travel and be used in the compute dtype, where that is the narrower one
};

class WeightShards {
 public:
  virtual ~WeightShards() = default;
  // This rank's part of `whole`, a new tensor of ceil(values / ranks) values or a few more, the same number on each
  // rank; zeros behind the last value.
  virtual at::Tensor own_part(const at::Tensor& whole) const = 0;
  // Shares the parts. Returns the unit's number.
  virtual size_t add_unit(std::vector<ShardedParameter> parameters) = 0;
  // The unit's whole parameters. `parts` are the unit's, or those detached: where they require grad, backward adds the
  // sum of the ranks' gradients to the .grad of the unit's parts, not of `parts`. `again`: within backward.
  virtual std::vector<at::Tensor> gather(size_t unit, at::TensorList parts, at::ScalarType compute_dtype,
                                         bool again) = 0;
};

}  // namespace vmoba::model
