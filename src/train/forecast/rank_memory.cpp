#include "train/forecast/rank_memory.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "config/experts.h"
#include "core/check.h"
#include "model/adapter/lora.h"
#include "model/architecture.h"
#include "model/common/dtype.h"
#include "model/common/fp8_linear.h"
#include "train/forecast/pass_memory.h"
#include "train/optim/optimizer.h"

namespace vmoba::train {
namespace {

int64_t width_of(const std::string& dtype) {
  return int64_t(c10::elementSize(model::scalar_type(dtype)));
}

int64_t kept_width(const RootConfig& config) {
  return config.model.weights_dtype == "packed" ? 1 : width_of(config.model.weights_dtype);
}

// Where there are several, they have the same sizes.
model::ModelConfig first_model(const RootConfig& config) {
  model::ModelConfig out = config.model;
  if (!config.experts.empty()) out.weights = config.experts.front().weights;
  return out;
}

// What an optimiser changes, without values: all parameters, or the adapters beside them.
std::vector<model::Parameter> trained_shapes(const RootConfig& config) {
  const std::vector<model::Parameter> parameters = model::parameter_shapes(first_model(config));
  std::map<std::string, int64_t> adapters;
  if (config.lora.enabled())
    adapters = model::adapter_values(config.lora, model::architecture_of(config.model), parameters);
  std::vector<model::Parameter> out;
  const auto add = [&](const std::string& name, at::IntArrayRef shape) {
    out.push_back({name, at::empty(shape, at::TensorOptions(at::kMeta).dtype(at::kFloat))});
  };
  for (const model::Parameter& p : parameters) {
    if (!config.lora.enabled()) out.push_back(p);
    const std::string module = p.name.substr(0, p.name.rfind('.'));
    if (!p.name.ends_with(".weight") || !adapters.contains(module)) continue;
    add(module + ".lora_A.weight", {config.lora.rank, p.shape()[1]});
    add(module + ".lora_B.weight", {p.shape()[0], config.lora.rank});
  }
  return out;
}

// Bytes of the gradients of each block that a rank makes alone.
std::vector<double> block_gradients(const RootConfig& config, size_t blocks) {
  const model::Architecture& architecture = model::architecture_of(config.model);
  const bool narrow = !config.lora.enabled() && config.model.weights_dtype == "bf16";
  std::vector<double> out;
  std::map<std::string, size_t> number;  // of each block, in the order of computing
  for (const model::Parameter& p : model::parameter_shapes(first_model(config)))
    if (const std::string block = model::block_of(architecture, p.name); !block.empty())
      number.emplace(block, number.size());
  VMOBA_CHECK(number.size() == blocks, "expected {} blocks among the parameters, found {}", blocks, number.size());
  out.resize(blocks);
  for (const model::Parameter& p : trained_shapes(config)) {
    const auto found = number.find(model::block_of(architecture, p.name));
    if (found == number.end()) continue;
    out[found->second] += narrow ? double(p.tensor.nbytes()) : 4 * double(c10::multiply_integers(p.shape()));
  }
  return out;
}

// Whether the gradients of a step come as its activations go: one pass, which one rank computes alone.
bool gradients_follow(const RootConfig& config, const dist::MeshSizes& sizes, int64_t micro) {
  const bool alone = sizes.data * sizes.state_ranks() == 1;
  return alone && config.experts.empty() && config.train.global_batch == micro;
}

void add_activations(const RootConfig& config, const dist::MeshSizes& sizes, const attention::Grid& grid, int64_t micro,
                     RankMemory& out) {
  const PassPlace pass{grid, micro, sizes.sequence};
  const std::vector<BlockMemory> blocks = block_memory(config, pass);
  out.activations = int64_t(most_activations(blocks));
  if (model::offloads_activations(config.model.offload))
    out.host_activations = int64_t(block_input_bytes(config, pass));
  if (!gradients_follow(config, sizes, micro)) return;
  const auto together = int64_t(most_with_gradients(blocks, block_gradients(config, blocks.size())));
  out.apart = out.gradients + out.activations - std::max(out.gradients, together);
}

}  // namespace

bool recomputes(const RootConfig& config) {
  return config.model.recompute != model::Recompute::kNone;
}

int64_t compute_width(const RootConfig& config) {
  return width_of(config.model.compute_dtype);
}

int64_t carried_width(const RootConfig& config) {
  return std::min(kept_width(config), compute_width(config));
}

ModelSizes model_sizes(const RootConfig& config) {
  const model::Architecture& architecture = model::architecture_of(config.model);
  const std::vector<model::Parameter> parameters = model::parameter_shapes(first_model(config));
  ModelSizes out;
  out.experts = int64_t(expert_count(config));
  const std::set<std::string> fp8 = model::fp8_weights(config.model, parameters);
  std::map<std::string, std::pair<int64_t, int64_t>> blocks;  // values and bytes
  for (const model::Parameter& p : parameters) {
    const int64_t count = c10::multiply_integers(p.shape());
    const auto bytes = int64_t(p.tensor.nbytes() + (p.scale.defined() ? p.scale.nbytes() : 0));
    out.parameters += count;
    out.kept_bytes += bytes;
    if (fp8.contains(p.name)) out.fp8 += count;
    if (const std::string block = model::block_of(architecture, p.name); !block.empty()) {
      blocks[block].first += count;
      blocks[block].second += bytes;
    } else {
      out.outer += count;
      out.outer_bytes += bytes;
    }
  }
  for (const auto& [name, block] : blocks) {
    out.largest_block = std::max(out.largest_block, block.first);
    out.largest_block_bytes = std::max(out.largest_block_bytes, block.second);
  }
  if (!config.lora.enabled())
    out.trainable = out.parameters;
  else
    for (const auto& [module, values] : model::adapter_values(config.lora, architecture, parameters))
      out.trainable += values;
  return out;
}

RankMemory rank_memory(const RootConfig& config, const dist::MeshSizes& sizes, const attention::Grid& grid,
                       int64_t micro) {
  const ModelSizes model = model_sizes(config);
  const bool lora = config.lora.enabled();
  const int64_t parts = sizes.state_ranks(), width = compute_width(config);
  const auto part = [parts](int64_t values) { return (values + parts - 1) / parts; };
  const int64_t trained = model.experts * (lora ? model.trainable : part(model.trainable));
  RankMemory out;
  // Matrices in bf16 are trained as they are kept, and a rank that holds all of them has their gradients in bf16.
  const bool narrow = !lora && config.model.weights_dtype == "bf16";
  out.weights = narrow ? model.experts * part(model.kept_bytes)
                       : 4 * trained + (lora ? model.experts * part(model.kept_bytes) : 0);
  if (config.train.distill.weight > 0 && !lora) out.weights += model.experts * width * part(model.parameters);
  out.gradients = narrow && parts == 1 ? model.experts * model.kept_bytes : 4 * trained;
  out.optimizer = model.experts * optimizer_bytes(config.train.optimizer, trained_shapes(config), lora ? 1 : parts);
  out.ema = config.train.ema.enabled ? 4 * trained : 0;
  if (parts > 1) {
    const int64_t block = model.largest_block, own = part(block);
    const int64_t gathered = model.outer + 2 * block + own;
    const bool again = recomputes(config) && config.parallel.gather != Gather::kOnce;
    out.working = carried_width(config) * (again ? gathered : model.parameters);
    if (!lora) out.working += width * block + 4 * (block + own);
  } else if (width != kept_width(config)) {
    out.working = width * (recomputes(config) ? model.largest_block : model.parameters);
  }
  add_activations(config, sizes, grid, micro, out);
  if (model::offloads_weights(config.model.offload)) {
    const int64_t blocks = model.kept_bytes - model.outer_bytes;
    out.weights -= model.experts * blocks;
    out.host_weights = model.experts * model.kept_bytes;
    // Without recomputing, autograd keeps those of every block.
    out.ring = 2 * model.largest_block_bytes + (recomputes(config) ? 0 : blocks);
  }
  return out;
}

}  // namespace vmoba::train
