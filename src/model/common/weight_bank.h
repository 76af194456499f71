// The tensors of a transformer: its parameters in the order of their specifications and the low-rank adapters beside
// them. Hands out runs of parameters as one flat list of tensors, so that a function of that list can be recomputed in
// backward, and binds such a list back to parameters. Where several ranks hold the parameters together, the list is of
// parts, and binding gathers the whole ones. Owns (shares) the tensors.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model/common/linear.h"
#include "model/dit.h"
#include "model/weight_store.h"

namespace vmoba::model {

// One parameter with what belongs to it where it is the weight of an affine map.
struct Weight {
  at::Tensor tensor;
  at::Tensor scale = {};
  LowRank adapter = {};
  std::optional<Packing> packing = {};
};

// The affine map of a weight and a bias [out], with the recipe that the weight calls for; dimensions of the weight
// behind [out, in] are flattened.
Linear bind_linear(const Weight& weight, const at::Tensor& bias);

class WeightBank {
 public:
  // What a use of parameters needs to know where ranks hold them together.
  struct Use {
    at::ScalarType compute_dtype;
    bool again = false;    // within backward
    bool adapters = true;  // with the adapters that are attached
  };

  // `store` may be null; else the parameters are parts.
  explicit WeightBank(std::vector<Parameter> parameters, WeightStore* store = nullptr);
  // Parameters [first, first + count) are used together (WeightStore::add_unit); nothing without a store.
  void add_unit(size_t first, size_t count, bool matrices_in_compute_dtype, const std::set<std::string>& fp8_weights);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  // The adapters' matrices "<module>.lora_A.weight", "<module>.lora_B.weight" where there are any, else all parameters.
  const std::vector<Parameter>& trainable() const { return adapters_.empty() ? parameters_ : adapters_; }

  // Freezes the parameters and adds adapters. Several of one module add up. Throws Error(kInput) naming an unknown
  // module or a shape that does not fit.
  void attach(const std::vector<Adapter>& adapters);

  // Parameters [first, first + count) and what belongs to them.
  std::vector<at::Tensor> tensors(size_t first, size_t count) const;
  // The same parameters from a list like that of tensors(first, count).
  std::vector<Weight> bind(size_t first, size_t count, at::TensorList tensors, Use use) const;
  std::vector<Weight> weights(size_t first, size_t count, Use use) const {
    return bind(first, count, tensors(first, count), use);
  }

 private:
  // The whole ones from this rank's parts.
  void gather(size_t first, std::vector<Weight>& weights, Use use) const;

  std::vector<Parameter> parameters_;
  WeightStore* store_;
  std::map<size_t, size_t> unit_of_;  // by number of the first parameter
  std::vector<Parameter> adapters_;
  std::map<size_t, LowRank> low_rank_;  // by number of the parameter
};

}  // namespace vmoba::model
