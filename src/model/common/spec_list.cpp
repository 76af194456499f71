#include "model/common/spec_list.h"

#include "core/check.h"

namespace vmoba::model {

void SpecList::tensor(const std::string& name, std::vector<int64_t> shape, Init init) {
  specs_.push_back({prefix_ + name, std::move(shape), init});
}

void SpecList::optional_tensor(const std::string& name, std::vector<int64_t> shape, Init init) {
  tensor(name, std::move(shape), init);
  specs_.back().optional = true;
}

void SpecList::linear(const std::string& name, int64_t in, int64_t out, Init weight) {
  tensor(name + ".weight", {out, in}, weight);
  tensor(name + ".bias", {out}, constant(0));
}

void SpecList::layer_norm(const std::string& name, int64_t width) {
  tensor(name + ".weight", {width}, constant(1));
  tensor(name + ".bias", {width}, constant(0));
}

Linear WeightCursor::linear() {
  const Weight& weight = weights_.at(next_++);
  return bind_linear(weight, tensor());
}

std::vector<at::Tensor> WeightCursor::rest() {
  std::vector<at::Tensor> out;
  while (next_ < weights_.size()) out.push_back(tensor());
  return out;
}

void WeightCursor::finish() const {
  VMOBA_CHECK(next_ == weights_.size(), "expected {} weights, found {}", next_, weights_.size());
}

}  // namespace vmoba::model
