// The tensors of a transformer: its parameters in the order of their specifications and the low-rank adapters beside
// them. Hands out runs of parameters as one flat list of tensors, so that a function of that list can be recomputed in
// backward, and binds such a list back to parameters. Owns (shares) the tensors.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "model/common/linear.h"
#include "model/dit.h"

namespace vmoba::model {

// One parameter with what belongs to it where it is the weight of an affine map.
struct Weight {
  at::Tensor tensor;
  at::Tensor scale;
  LowRank adapter;
};

class WeightBank {
 public:
  explicit WeightBank(std::vector<Parameter> parameters);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  // The adapters' matrices "<module>.lora_A.weight", "<module>.lora_B.weight" where there are any, else all parameters.
  const std::vector<Parameter>& trainable() const { return adapters_.empty() ? parameters_ : adapters_; }

  // Freezes the parameters and adds adapters. Several of one module add up. Throws Error(kInput) naming an unknown
  // module or a shape that does not fit.
  void attach(const std::vector<Adapter>& adapters);

  // Parameters [first, first + count) and what belongs to them.
  std::vector<at::Tensor> tensors(size_t first, size_t count) const;
  // The same parameters from a list like that of tensors(first, count).
  std::vector<Weight> bind(size_t first, size_t count, at::TensorList tensors) const;
  std::vector<Weight> weights(size_t first, size_t count) const { return bind(first, count, tensors(first, count)); }

 private:
  std::vector<Parameter> parameters_;
  std::vector<Parameter> adapters_;
  std::map<size_t, LowRank> low_rank_;  // by number of the parameter
};

}  // namespace vmoba::model
