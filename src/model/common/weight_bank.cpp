#include "model/common/weight_bank.h"

#include <ATen/ops/cat.h>
#include <fmt/ranges.h>

#include <utility>

#include "core/check.h"
#include "core/config.h"

namespace vmoba::model {
namespace {

void check_fits(const Adapter& adapter, at::IntArrayRef weight) {
  VMOBA_CHECK_INPUT(weight.size() == 2, "LoRA: expected the weight of a linear map as target, found '{}' of shape {}",
                    adapter.module, fmt::join(weight, "x"));
  const at::Tensor &a = adapter.low_rank.a, &b = adapter.low_rank.b;
  VMOBA_CHECK_INPUT(
      a.dim() == 2 && b.dim() == 2 && a.size(0) == b.size(1) && a.size(1) == weight[1] && b.size(0) == weight[0],
      "LoRA: expected A [r, {}] and B [{}, r] for '{}', found {} and {}; the file belongs to another model", weight[1],
      weight[0], adapter.module, fmt::join(a.sizes(), "x"), fmt::join(b.sizes(), "x"));
}

// Ranks one behind the other; what differs in scale is folded into B.
LowRank sum_of(const LowRank& x, const LowRank& y) {
  return {at::cat({x.a, y.a}, 0).detach(), at::cat({x.b * x.scale, y.b * y.scale}, 1).detach(), 1};
}

}  // namespace

Linear bind_linear(const Weight& weight, const at::Tensor& bias) {
  LinearRecipe recipe = CastWeight{};
  if (weight.scale.defined()) recipe = ScaledWeight{weight.scale};
  if (weight.packing) recipe = PackedWeight{*weight.packing};
  return {weight.tensor.dim() == 2 ? weight.tensor : weight.tensor.flatten(1), bias, recipe, weight.adapter};
}

WeightBank::WeightBank(std::vector<Parameter> parameters, WeightStore* store)
    : parameters_(std::move(parameters)), store_(store) {}

void WeightBank::add_unit(size_t first, size_t count, bool matrices_in_compute_dtype,
                          const std::set<std::string>& fp8_weights) {
  if (store_ == nullptr) return;
  std::vector<StoredParameter> unit;
  for (size_t i = first; i < first + count; ++i) {
    const Parameter& p = parameters_.at(i);
    unit.push_back(
        {p.tensor, p.shape().vec(), matrices_in_compute_dtype && p.shape().size() == 2, fp8_weights.contains(p.name)});
  }
  unit_of_[first] = store_->add_unit(std::move(unit));
}

void WeightBank::attach(const std::vector<Adapter>& adapters) {
  std::map<std::string, size_t> number_of;
  std::vector<std::string> modules;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i].tensor.requires_grad_(false);
    const std::string& name = parameters_[i].name;
    if (!name.ends_with(".weight")) continue;
    modules.push_back(name.substr(0, name.rfind('.')));
    number_of[modules.back()] = i;
  }
  for (const Adapter& adapter : adapters) {
    const auto found = number_of.find(adapter.module);
    VMOBA_CHECK_INPUT(found != number_of.end(), "LoRA: expected modules of the model, found '{}'; the nearest is '{}'",
                      adapter.module, nearest_name(adapter.module, modules));
    check_fits(adapter, parameters_[found->second].shape());
    const auto [slot, fresh] = low_rank_.emplace(found->second, adapter.low_rank);
    if (!fresh) slot->second = sum_of(slot->second, adapter.low_rank);
  }
  adapters_.clear();
  for (auto& [number, low_rank] : low_rank_) {
    const std::string& name = parameters_[number].name;
    const std::string module = name.substr(0, name.rfind('.'));
    adapters_.push_back({module + ".lora_A.weight", low_rank.a.requires_grad_(true)});
    adapters_.push_back({module + ".lora_B.weight", low_rank.b.requires_grad_(true)});
  }
}

std::vector<at::Tensor> WeightBank::tensors(size_t first, size_t count) const {
  std::vector<at::Tensor> out;
  for (size_t i = first; i < first + count; ++i) {
    out.push_back(parameters_.at(i).tensor);
    if (parameters_[i].scale.defined()) out.push_back(parameters_[i].scale);
    const auto low_rank = low_rank_.find(i);
    if (low_rank == low_rank_.end()) continue;
    out.push_back(low_rank->second.a);
    out.push_back(low_rank->second.b);
  }
  return out;
}

std::vector<Weight> WeightBank::bind(size_t first, size_t count, at::TensorList tensors, Use use) const {
  std::vector<Weight> out;
  size_t next = 0;
  for (size_t i = first; i < first + count; ++i) {
    Weight weight{tensors.at(next++)};
    weight.packing = parameters_[i].packing;
    if (parameters_.at(i).scale.defined()) weight.scale = tensors.at(next++);
    if (const auto low_rank = low_rank_.find(i); low_rank != low_rank_.end()) {
      const at::Tensor a = tensors.at(next++), b = tensors.at(next++);
      if (use.adapters) weight.adapter = {a, b, low_rank->second.scale};
    }
    out.push_back(std::move(weight));
  }
  VMOBA_CHECK(next == tensors.size(), "expected {} tensors of {} parameters, found {}", next, count, tensors.size());
  if (store_ != nullptr) gather(first, out, use);
  return out;
}

void WeightBank::gather(size_t first, std::vector<Weight>& weights, Use use) const {
  std::vector<at::Tensor> parts;
  for (const Weight& weight : weights) parts.push_back(weight.tensor);
  const auto whole = store_->gather(unit_of_.at(first), parts, use.compute_dtype, use.again);
  for (size_t i = 0; i < weights.size(); ++i) weights[i].tensor = whole[i];
}

}  // namespace vmoba::model
