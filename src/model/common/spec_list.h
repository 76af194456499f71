// Writing down the parameters of a model in their order, and picking their weights out of that order again.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "model/common/linear.h"
#include "model/common/parameters.h"
#include "model/common/weight_bank.h"

namespace vmoba::model {

class SpecList {
 public:
  // `prefix` stands before all names.
  explicit SpecList(std::string prefix) : prefix_(std::move(prefix)) {}

  void tensor(const std::string& name, std::vector<int64_t> shape, Init init);
  void optional_tensor(const std::string& name, std::vector<int64_t> shape, Init init);
  // "<name>.weight" [out, in] and a bias of zeros.
  void linear(const std::string& name, int64_t in, int64_t out, Init weight);
  void linear(const std::string& name, int64_t in, int64_t out) { linear(name, in, out, xavier_uniform(in, out)); }
  // Ones and zeros.
  void layer_norm(const std::string& name, int64_t width);

  std::vector<ParameterSpec> take() { return std::move(specs_); }

 private:
  std::string prefix_;
  std::vector<ParameterSpec> specs_;
};

// Hands out weights one after the other.
class WeightCursor {
 public:
  // `weights` must outlive it.
  explicit WeightCursor(const std::vector<Weight>& weights) : weights_(weights) {}

  const at::Tensor& tensor() { return weights_.at(next_++).tensor; }
  // A weight and a bias.
  Linear linear();
  // All that are left.
  std::vector<at::Tensor> rest();
  // Throws where weights are left.
  void finish() const;

 private:
  const std::vector<Weight>& weights_;
  size_t next_ = 0;
};

}  // namespace vmoba::model
