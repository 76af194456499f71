#include "model/adapter/weight_change.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <limits>
#include <memory>

#include "core/check.h"
#include "model/weights/fp8.h"

namespace vmoba::model {
namespace {

int64_t values_of(const std::vector<int64_t>& shape, size_t first) {
  int64_t count = 1;
  for (size_t i = first; i < shape.size(); ++i) count *= shape[i];
  return count;
}

bool fits_weight(const ModuleChange& change, const std::vector<int64_t>& shape) {
  const auto [a, b, scale] = change.low_rank;
  if (a.defined() && (shape.size() < 2 || b.size(0) != shape[0] || a.size(1) != values_of(shape, 1))) return false;
  if (change.weight.defined() && change.weight.sizes() != at::IntArrayRef(shape)) return false;
  if (!change.magnitude.defined()) return true;
  const int64_t lengths = change.magnitude.numel();
  return shape.size() == 2 && (lengths == shape[0] || (change.magnitude.dim() == 2 && lengths == shape[1]));
}

// The lengths belong to the rows where they can; LyCORIS also writes those of the columns, as [1, in].
bool of_columns(const at::Tensor& magnitude, const at::Tensor& weight) {
  const bool lies = magnitude.dim() == 2 && magnitude.size(0) == 1 && magnitude.size(1) == weight.size(1);
  return lies && (weight.size(0) != 1);
}

at::Tensor with_lengths(const at::Tensor& weight, const at::Tensor& magnitude) {
  const int64_t along = of_columns(magnitude, weight) ? 0 : 1;
  const at::Tensor lengths = weight.norm(2, along, /*keepdim=*/true).clamp_min(std::numeric_limits<float>::min());
  return weight * (magnitude.view(lengths.sizes()) / lengths);
}

void apply(const Delta& delta, const at::Tensor& base, at::Tensor& parameter) {
  const ModuleChange& change = delta.change;
  const LowRank& low_rank = change.low_rank;
  if (change.magnitude.defined()) {
    const at::Tensor moved =
        low_rank.a.defined() ? at::addmm(base, low_rank.b, low_rank.a, /*beta=*/1, low_rank.scale) : base;
    parameter.add_(with_lengths(moved, change.magnitude) - base, delta.strength);
  } else if (low_rank.a.defined()) {
    at::Tensor matrix = parameter.flatten(1);
    matrix.addmm_(low_rank.b, low_rank.a, 1, low_rank.scale * delta.strength);
  }
  if (change.weight.defined()) parameter.add_(change.weight, delta.strength);
}

at::Device device_of(const ModuleChange& change) {
  for (const at::Tensor& tensor : {change.low_rank.a, change.weight, change.magnitude})
    if (tensor.defined()) return tensor.device();
  return at::kCPU;
}

// The parameter's values in fp32, changed where the change is, and back where they are kept.
void change_in_place(const Parameter& parameter, const std::vector<Delta>& deltas) {
  const at::Tensor& kept = parameter.tensor;
  const bool fp8 = c10::elementSize(kept.scalar_type()) == 1;
  const at::Device device = device_of(deltas.front().change);
  const at::Tensor there = kept.detach().to(device);
  at::Tensor values = parameter.scale.defined() ? scaled_weight(there, parameter.scale.to(device), at::kFloat)
                                                : there.to(at::kFloat, false, /*copy=*/true);
  apply_deltas(deltas, values);
  if (!fp8) {
    kept.detach().copy_(values);
    return;
  }
  auto [matrix, scale] = quantise_fp8(values);
  kept.detach().copy_(matrix);
  if (parameter.scale.defined()) at::Tensor(parameter.scale).set_data(scale.to(parameter.scale.options()));
}

}  // namespace

ShapeOf shapes_of(const std::vector<Parameter>& parameters) {
  const auto shapes = std::make_shared<std::map<std::string, std::vector<int64_t>>>();
  for (const Parameter& parameter : parameters) (*shapes)[parameter.name] = parameter.shape().vec();
  return [shapes](const std::string& name) {
    const auto found = shapes->find(name);
    return found == shapes->end() ? nullptr : &found->second;
  };
}

void add_deltas(std::vector<ModuleChange> changes, double strength, const std::string& file, const ShapeOf& shape_of,
                const std::string& transformer, Deltas& deltas) {
  const auto shape_at = [&](const std::string& name, const std::string& module) -> const std::vector<int64_t>& {
    const std::vector<int64_t>* shape = shape_of(name);
    VMOBA_CHECK_INPUT(shape != nullptr, "LoRA '{}': expected modules of '{}', found '{}'", file, transformer, module);
    return *shape;
  };
  const auto check_fit = [&](bool fits, const std::string& module, const std::vector<int64_t>& shape) {
    VMOBA_CHECK_INPUT(fits,
                      "LoRA '{}': expected '{}' to fit {} of '{}', found another size; the file belongs to "
                      "another model",
                      file, module, fmt::join(shape, "x"), transformer);
  };
  for (ModuleChange& change : changes) {
    const std::string module = change.module;
    if (change.bias.defined()) {
      const std::vector<int64_t>& shape = shape_at(module + ".bias", module);
      check_fit(change.bias.sizes() == at::IntArrayRef(shape), module, shape);
      ModuleChange bias;
      bias.module = module;
      bias.weight = std::move(change.bias);
      deltas[module + ".bias"].push_back({std::move(bias), strength});
    }
    if (!change.low_rank.a.defined() && !change.magnitude.defined() && !change.weight.defined()) continue;
    const std::string name = shape_of(module) != nullptr ? module : module + ".weight";
    const std::vector<int64_t>& shape = shape_at(name, module);
    check_fit(fits_weight(change, shape), module, shape);
    change.bias = at::Tensor();
    deltas[name].push_back({std::move(change), strength});
  }
}

void apply_deltas(const std::vector<Delta>& deltas, at::Tensor& parameter) {
  at::Tensor base = parameter;
  for (const Delta& delta : deltas)
    if (delta.change.magnitude.defined()) base = parameter.clone();
  for (const Delta& delta : deltas) apply(delta, base, parameter);
}

std::vector<Adapter> merged_adapters(std::vector<AdapterFile> files, const std::vector<Parameter>& parameters) {
  const ShapeOf shape_of = shapes_of(parameters);
  std::vector<Adapter> adapters;
  Deltas deltas;
  for (AdapterFile& file : files) {
    std::vector<ModuleChange> others;
    for (ModuleChange& change : file.changes) {
      const std::vector<int64_t>* shape = shape_of(change.module + ".weight");
      if (change.low_rank_alone() && shape != nullptr && shape->size() == 2) {
        change.low_rank.scale *= file.strength;
        adapters.push_back({change.module, std::move(change.low_rank)});
      } else {
        others.push_back(std::move(change));
      }
    }
    add_deltas(std::move(others), file.strength, file.path, shape_of, "the model", deltas);
  }
  const at::NoGradGuard no_grad;
  for (const Parameter& parameter : parameters)
    if (const auto found = deltas.find(parameter.name); found != deltas.end())
      change_in_place(parameter, found->second);
  return adapters;
}

}  // namespace vmoba::model
