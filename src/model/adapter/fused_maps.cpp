#include "model/adapter/fused_maps.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "core/check.h"

namespace vmoba::model {
namespace {

// Inputs of the changed map; 0 where the change does not tell.
int64_t columns_of(const ModuleChange& change) {
  if (change.low_rank.a.defined()) return change.low_rank.a.size(1);
  return change.weight.defined() && change.weight.dim() == 2 ? change.weight.size(1) : 0;
}

// Outputs of the changed map; 0 where the change does not tell.
int64_t rows_of(const ModuleChange& change) {
  for (const at::Tensor& tensor : {change.low_rank.b, change.weight, change.bias})
    if (tensor.defined()) return tensor.size(0);
  return 0;
}

struct Part {
  const Adapter* adapter = nullptr;
  int64_t rows = 0;
};

// The rows of the part `place`, which has no adapter, beside one that has.
int64_t missing_rows(const std::string& module, const StoredPlace& place, const LowRank& beside,
                     const ShapeOf& shape_of) {
  if (place.rows == Rows::kEqualPart) return beside.b.size(0);
  if (place.part + 1 < place.parts) return beside.a.size(1);
  const std::vector<int64_t>* shape = shape_of ? shape_of(module + ".weight") : nullptr;
  VMOBA_CHECK_INPUT(shape != nullptr && !shape->empty(),
                    "expected an adapter of '{}' as well, whose size '{}' needs, found none; write diffusers' format, "
                    "in which every map has its own",
                    module, place.name);
  return shape->front();
}

bool share_a(const std::vector<Part>& parts) {
  const Adapter* first = nullptr;
  for (const Part& part : parts) {
    if (part.adapter == nullptr) continue;
    if (first == nullptr) first = part.adapter;
    const LowRank &own = part.adapter->low_rank, &other = first->low_rank;
    if (own.scale != other.scale || !own.a.equal(other.a)) return false;
  }
  return true;
}

// One scale where all have it, else it goes into B.
double common_scale(const std::vector<Part>& parts) {
  std::vector<double> scales;
  for (const Part& part : parts)
    if (part.adapter != nullptr) scales.push_back(part.adapter->low_rank.scale);
  const bool same = std::all_of(scales.begin(), scales.end(), [&](double scale) { return scale == scales.front(); });
  return same ? scales.front() : 1;
}

LowRank fused(const std::vector<Part>& parts) {
  const bool one_a = share_a(parts);
  const double scale = common_scale(parts);
  std::vector<at::Tensor> a, b;
  int64_t rows = 0, rank = 0;
  for (const Part& part : parts) {
    rows += part.rows;
    if (part.adapter == nullptr || (one_a && !a.empty())) continue;
    a.push_back(part.adapter->low_rank.a);
    rank += a.back().size(0);
  }
  at::Tensor b_OK = at::zeros({rows, rank}, a.front().options().requires_grad(false));
  int64_t row = 0, column = 0;
  for (const Part& part : parts) {
    if (part.adapter != nullptr) {
      const LowRank& own = part.adapter->low_rank;
      b_OK.narrow(0, row, part.rows).narrow(1, column, own.a.size(0)).copy_(own.b.detach() * (own.scale / scale));
      if (!one_a) column += own.a.size(0);
    }
    row += part.rows;
  }
  return {at::cat(a).detach(), b_OK, scale};
}

}  // namespace

std::vector<ModuleChange> split_change(const ModuleChange& change, const Held& held, const std::string& path) {
  if (held.rows == Rows::kAll) return {change};
  std::vector<ModuleChange> out;
  for (size_t i = 0; i < held.names.size(); ++i) {
    const int64_t rows = rows_of(change);
    const std::vector<RowRun> runs = row_runs({"", held.rows, i, held.names.size()}, rows, columns_of(change));
    const bool of_rows = !change.magnitude.defined() || (change.magnitude.numel() == rows && rows > 0);
    VMOBA_CHECK_INPUT(!runs.empty() && of_rows,
                      "expected a change of '{}' in '{}' that can be cut by rows, found {}; merge the file into the "
                      "weights with the tool that made it",
                      fmt::join(held.names, "', '"), path, of_rows ? "another size" : "DoRA's lengths of columns");
    const auto own = [&](const at::Tensor& tensor) {
      return tensor.defined() ? take_rows(tensor, runs).clone() : tensor;
    };
    ModuleChange part;
    part.module = held.names[i];
    part.low_rank = {change.low_rank.a.defined() ? change.low_rank.a.clone() : at::Tensor(), own(change.low_rank.b),
                     change.low_rank.scale};
    if (change.magnitude.defined()) part.magnitude = own(change.magnitude.view({rows, 1}));
    part.weight = own(change.weight);
    part.bias = own(change.bias);
    out.push_back(std::move(part));
  }
  return out;
}

std::vector<Adapter> in_layout(const std::vector<Adapter>& adapters, const Layout& layout, const ShapeOf& shape_of) {
  std::map<std::string, const Adapter*> by_module;
  for (const Adapter& adapter : adapters) by_module[adapter.module] = &adapter;
  std::vector<Adapter> out;
  std::map<std::string, bool> done;
  for (const Adapter& adapter : adapters) {
    const StoredPlace place = layout.names.place_of(adapter.module).value_or(StoredPlace{adapter.module});
    const auto& [a, b, scale] = adapter.low_rank;
    if (place.rows == Rows::kAll) {
      out.push_back({place.name, adapter.low_rank});
    } else if (place.rows == Rows::kSwappedHalves) {
      out.push_back({place.name, {a, joined_rows({b.detach()}, place.rows), scale}});
    } else if (!done[place.name]) {
      done[place.name] = true;
      const std::vector<std::string> modules = layout.names.to_diffusers(place.name);
      std::vector<Part> parts;
      for (size_t i = 0; i < modules.size(); ++i) {
        const auto found = by_module.find(modules[i]);
        const StoredPlace own{place.name, place.rows, i, modules.size()};
        parts.push_back(found == by_module.end()
                            ? Part{nullptr, missing_rows(modules[i], own, adapter.low_rank, shape_of)}
                            : Part{found->second, found->second->low_rank.b.size(0)});
      }
      out.push_back({place.name, fused(parts)});
    }
  }
  return out;
}

}  // namespace vmoba::model
