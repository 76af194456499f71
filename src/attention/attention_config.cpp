#include "attention/attention.h"

#include <algorithm>

#include "attention/block/partition.h"
#include "attention/method.h"
#include "core/check.h"

namespace vmoba::attention {

const Choices<Partition>& choices_of(Partition) {
  static const Choices<Partition> table("a partition", {{Partition::kTemporal, "temporal"},
                                                        {Partition::kSpatial, "spatial"},
                                                        {Partition::kSpatiotemporal, "spatiotemporal"}});
  return table;
}

const Choices<Implementation>& choices_of(Implementation) {
  static const Choices<Implementation> table("attention.implementation", {{Implementation::kAuto, "auto"},
                                                                          {Implementation::kReference, "reference"},
                                                                          {Implementation::kNative, "native"}});
  return table;
}

AttentionConfig::AttentionConfig() {
  for (const Method* method : methods()) parts_.push_back(method->part.make ? method->part.make() : std::any());
}

void AttentionConfig::visit(ConfigVisitor& v) {
  std::vector<std::string> names;
  for (const Method* method : methods()) names.emplace_back(method->name);
  v.field("backend", backend, "Self attention over video tokens: full, or VMoBA's block-sparse attention.",
          one_of(names));
  v.field("implementation", implementation,
          "Who computes VMoBA: native (CUDA kernels), reference (plain tensor operations on any device), or auto "
          "(native where the device has kernels, else reference).");
  v.field(
      "full_when_faster", full_when_faster,
      "With implementation auto on a GPU: run full attention where the native kernels would be slower than it, by a "
      "measured rule on tokens and expected density (docs/attention.md).");
  for (size_t i = 0; i < parts_.size(); ++i)
    if (const auto visit_part = methods()[i]->part.visit) visit_part(parts_[i], v);
  v.field("dense_layers", dense_layers, "First layers of the network that always use full attention.", at_least(0));
  v.field("dense_steps", dense_steps, "First denoising steps of sampling that use full attention.", at_least(0));
  v.field("dense_warmup_steps", dense_warmup_steps, "First optimiser steps of training that use full attention.",
          at_least(0));
}

void AttentionConfig::validate() const {
  check_config("attention", *this);
  for (size_t i = 0; i < parts_.size(); ++i)
    if (const auto validate_part = methods()[i]->part.validate) validate_part(parts_[i]);
}

const std::any& AttentionConfig::part_of(const Method& method) const {
  return parts_[size_t(std::find(methods().begin(), methods().end(), &method) - methods().begin())];
}

bool LayerAttention::sparse() const {
  return method->select != nullptr;
}

LayerAttention layer_attention(const AttentionConfig& config, int64_t layer, bool dense, double sparsity) {
  config.validate();
  VMOBA_CHECK(layer >= 0, "expected a layer of at least 0, found {}", layer);
  LayerAttention out;
  out.index = layer;
  out.implementation = config.implementation;
  out.full_when_faster = config.full_when_faster;
  const Method& method = find_method(config.backend);
  if (dense || method.plan == nullptr || layer < config.dense_layers) return out;
  out.method = &method;
  method.plan(config.part_of(method), layer - config.dense_layers, sparsity, out);
  return out;
}

void check_network(const AttentionConfig& config, int64_t layers, int64_t heads) {
  const Method& method = find_method(config.backend);
  if (method.check_network) method.check_network(config.part_of(method), layers, heads);
}

Stage training_stage(const AttentionConfig& config, int64_t step) {
  if (step < config.dense_warmup_steps) return {true, 0};
  const Method& method = find_method(config.backend);
  const int64_t falling = method.density_steps == nullptr ? 0 : method.density_steps(config.part_of(method));
  const int64_t sparse_steps = step - config.dense_warmup_steps;
  if (sparse_steps >= falling) return {};
  return {false, double(sparse_steps + 1) / double(falling + 1)};
}

std::vector<LearntParameter> learnt_parameters(const LayerAttention& layer, int64_t heads, int64_t head_dim) {
  if (layer.method->learnt == nullptr) return {};
  return layer.method->learnt(layer, heads, head_dim);
}

std::vector<LearntParameter> all_learnt_parameters(int64_t heads, int64_t head_dim) {
  std::vector<LearntParameter> out;
  for (const Method* method : methods()) {
    if (method->could_learn == nullptr) continue;
    for (LearntParameter& parameter : method->could_learn(heads, head_dim)) out.push_back(std::move(parameter));
  }
  return out;
}

int64_t block_count(const Grid& grid, const LayerAttention& layer) {
  return layer.sparse() ? partition_block_count(grid, layer.chunk) : 1;
}

double attention_flops(int64_t tokens, int64_t heads, int64_t head_dim, double density, int64_t blocks_of_gate) {
  const double s = static_cast<double>(tokens);
  const double width = static_cast<double>(heads) * static_cast<double>(head_dim);
  return 4 * s * s * width * density + 2 * s * static_cast<double>(blocks_of_gate) * width;
}

double layer_flops(const LayerAttention& layer, const Grid& grid, int64_t heads, int64_t head_dim, double density) {
  return layer.method->flops(layer, grid, heads, head_dim, density);
}

double expected_density(const AttentionConfig& config, const Grid& grid, int64_t layers) {
  double sum = 0;
  int64_t sparse = 0;
  for (int64_t i = 0; i < layers; ++i) {
    const LayerAttention layer = layer_attention(config, i, /*dense=*/false);
    if (!layer.sparse()) continue;
    sum += layer.method->expected_density(layer, block_count(grid, layer));
    ++sparse;
  }
  return sparse == 0 ? 1 : sum / double(sparse);
}

std::string heads_select_together(const AttentionConfig& config, int64_t layers) {
  for (int64_t i = 0; i < layers; ++i) {
    const LayerAttention layer = layer_attention(config, i, /*dense=*/false);
    if (!layer.method->heads_select_together) continue;
    const std::string reason = layer.method->heads_select_together(layer);
    if (!reason.empty()) return reason;
  }
  return "";
}

}  // namespace vmoba::attention
