#include <ATen/ops/stack.h>
#include <fmt/format.h>

#include <cmath>

#include "attention/attention.h"
#include "attention/vmoba_partition.h"
#include "core/check.h"

namespace vmoba::attention {
namespace {

SelectMode select_from_name(const std::string& name) {
  if (name == "threshold") return SelectMode::kThreshold;
  if (name == "topk") return SelectMode::kTopk;
  throw_input("expected attention.select to be threshold or topk, found '{}'", name);
}

Pool pool_from_name(const std::string& name) {
  if (name == "query_head") return Pool::kQueryHead;
  if (name == "block") return Pool::kBlock;
  if (name == "head_global") return Pool::kHeadGlobal;
  if (name == "overall") return Pool::kOverall;
  throw_input("expected attention.pool to be query_head, block, head_global or overall, found '{}'", name);
}

void check_chunk(const char* key, const std::vector<int64_t>& chunk, size_t size) {
  VMOBA_CHECK_INPUT(chunk.size() == size, "expected attention.{} to hold {} numbers, found {}", key, size,
                    chunk.size());
  for (const int64_t c : chunk)
    VMOBA_CHECK_INPUT(c >= 1, "expected every number of attention.{} to be at least 1, found {}", key, c);
}

void check_at_least(const char* key, int64_t value, int64_t least) {
  VMOBA_CHECK_INPUT(value >= least, "expected attention.{} to be at least {}, found {}", key, least, value);
}

}  // namespace

const char* partition_name(Partition partition) {
  switch (partition) {
    case Partition::kTemporal:
      return "temporal";
    case Partition::kSpatial:
      return "spatial";
    case Partition::kSpatiotemporal:
      return "spatiotemporal";
  }
  throw_runtime("expected a partition, found the number {}", static_cast<int>(partition));
}

void AttentionConfig::visit(ConfigVisitor& v) {
  v.field("backend", backend, "Self attention over video tokens: full, or VMoBA's block-sparse attention.",
          one_of({"full", "vmoba"}));
  v.field("implementation", implementation,
          "Who computes VMoBA: native (CUDA kernels), reference (plain tensor operations on any device), or auto "
          "(native where the device has kernels, else reference).",
          one_of({"auto", "reference", "native"}));
  v.field(
      "full_when_faster", full_when_faster,
      "With implementation auto on a GPU: run full attention where the native kernels would be slower than it, by a "
      "measured rule on tokens and expected density (docs/attention.md).");
  v.field("temporal_chunk", temporal_chunk, "Temporal partition: latent frames per block.", at_least(1));
  v.field("spatial_chunk", spatial_chunk, "Spatial partition: patches per block as [height, width].", list_of(2, 1));
  v.field("spatiotemporal_chunk", spatiotemporal_chunk,
          "Spatiotemporal partition: patches per block as [frames, height, width].", list_of(3, 1));
  v.field("temporal_layers", temporal_layers, "Layers with the temporal partition in each cycle over depth.",
          at_least(0));
  v.field("spatial_layers", spatial_layers, "Layers with the spatial partition that follow in each cycle.",
          at_least(0));
  v.field("spatiotemporal_layers", spatiotemporal_layers,
          "Layers with the spatiotemporal partition that close each cycle.", at_least(0));
  v.field("select", select, "How blocks are selected: by a threshold on the summed gate, or a fixed number.",
          one_of({"threshold", "topk"}));
  v.field("pool", pool,
          "Gate values that compete with each other: those of a token and head, of a block, of a head, or all.",
          one_of({"query_head", "block", "head_global", "overall"}));
  v.field("tau", tau, "Share of a pool's normalised gate sum that the attended blocks reach (threshold); 1 takes all.",
          at_least(0.0));
  v.field("temporal_topk", temporal_topk, "Blocks per token in temporal layers, the own one counted (topk).",
          at_least(1));
  v.field("spatial_topk", spatial_topk, "Blocks per token in spatial layers, the own one counted (topk).", at_least(1));
  v.field("spatiotemporal_topk", spatiotemporal_topk,
          "Blocks per token in spatiotemporal layers, the own one counted (topk).", at_least(1));
  v.field("dense_layers", dense_layers, "First layers of the network that always use full attention.", at_least(0));
  v.field("dense_steps", dense_steps, "First denoising steps of sampling that use full attention.", at_least(0));
  v.field("dense_warmup_steps", dense_warmup_steps, "First optimiser steps of training that use full attention.",
          at_least(0));
}

void AttentionConfig::validate() const {
  VMOBA_CHECK_INPUT(backend == "full" || backend == "vmoba",
                    "expected attention.backend to be full or vmoba, found '{}'", backend);
  VMOBA_CHECK_INPUT(implementation == "auto" || implementation == "reference" || implementation == "native",
                    "expected attention.implementation to be auto, reference or native, found '{}'", implementation);
  const SelectMode mode = select_from_name(select);
  const Pool from_pool = pool_from_name(pool);
  VMOBA_CHECK_INPUT(!(mode == SelectMode::kTopk && from_pool == Pool::kBlock),
                    "expected attention.pool to be query_head, head_global or overall with attention.select=topk, "
                    "found block, which has no top-k; change attention.pool or set attention.select=threshold");
  VMOBA_CHECK_INPUT(std::isfinite(tau) && tau >= 0, "expected attention.tau to be a number of at least 0, found {}",
                    tau);
  check_at_least("temporal_chunk", temporal_chunk, 1);
  check_chunk("spatial_chunk", spatial_chunk, 2);
  check_chunk("spatiotemporal_chunk", spatiotemporal_chunk, 3);
  check_at_least("temporal_layers", temporal_layers, 0);
  check_at_least("spatial_layers", spatial_layers, 0);
  check_at_least("spatiotemporal_layers", spatiotemporal_layers, 0);
  VMOBA_CHECK_INPUT(temporal_layers > 0 || spatial_layers > 0 || spatiotemporal_layers > 0,
                    "expected at least one layer in the cycle, found attention.temporal_layers, "
                    "attention.spatial_layers and attention.spatiotemporal_layers all 0; set one of them, or "
                    "attention.backend=full");
  check_at_least("temporal_topk", temporal_topk, 1);
  check_at_least("spatial_topk", spatial_topk, 1);
  check_at_least("spatiotemporal_topk", spatiotemporal_topk, 1);
  check_at_least("dense_layers", dense_layers, 0);
  check_at_least("dense_steps", dense_steps, 0);
  check_at_least("dense_warmup_steps", dense_warmup_steps, 0);
}

LayerAttention layer_attention(const AttentionConfig& config, int64_t layer, bool dense) {
  config.validate();
  VMOBA_CHECK(layer >= 0, "expected a layer of at least 0, found {}", layer);
  LayerAttention out;
  out.select = select_from_name(config.select);
  out.pool = pool_from_name(config.pool);
  out.tau = config.tau;
  out.implementation = config.implementation;
  out.full_when_faster = config.full_when_faster;
  if (dense || config.backend == "full" || layer < config.dense_layers) return out;

  out.sparse = true;

  const int64_t cycle = config.temporal_layers + config.spatial_layers + config.spatiotemporal_layers;
  const int64_t entry = (layer - config.dense_layers) % cycle;
  if (entry < config.temporal_layers) {
    out.partition = Partition::kTemporal;
    out.chunk = {config.temporal_chunk, 0, 0};
    out.topk = config.temporal_topk;
  } else if (entry < config.temporal_layers + config.spatial_layers) {
    out.partition = Partition::kSpatial;
    out.chunk = {0, config.spatial_chunk[0], config.spatial_chunk[1]};
    out.topk = config.spatial_topk;
  } else {
    out.partition = Partition::kSpatiotemporal;
    out.chunk = {config.spatiotemporal_chunk[0], config.spatiotemporal_chunk[1], config.spatiotemporal_chunk[2]};
    out.topk = config.spatiotemporal_topk;
  }
  return out;
}

int64_t block_count(const Grid& grid, const LayerAttention& layer) {
  return layer.sparse ? partition_block_count(grid, layer.chunk) : 1;
}

double attention_flops(int64_t tokens, int64_t heads, int64_t head_dim, double density, int64_t blocks_of_gate) {
  const double s = static_cast<double>(tokens);
  const double width = static_cast<double>(heads) * static_cast<double>(head_dim);
  return 4 * s * s * width * density + 2 * s * static_cast<double>(blocks_of_gate) * width;
}

void AttentionStats::record(const std::string& name, const at::Tensor& pairs, double total) {
  const std::lock_guard lock(mutex_);
  entries_.push_back({name, pairs.detach(), total});
}

std::map<std::string, std::pair<double, double>> AttentionStats::pairs() const {
  const std::lock_guard lock(mutex_);
  // One copy per device, however many layers were recorded.
  std::map<std::string, std::vector<at::Tensor>> by_device;
  for (const Entry& entry : entries_) by_device[entry.pairs.device().str()].push_back(entry.pairs.to(at::kDouble));
  std::map<std::string, at::Tensor> read;
  for (const auto& [device, pairs] : by_device) read[device] = at::stack(pairs).cpu();

  std::map<std::string, std::pair<double, double>> sums;
  std::map<std::string, int64_t> next;
  for (const Entry& entry : entries_) {
    const std::string device = entry.pairs.device().str();
    const double pairs = read[device].const_data_ptr<double>()[next[device]++];
    sums[entry.name].first += pairs;
    sums[entry.name].second += entry.total;
  }
  return sums;
}

std::map<std::string, double> AttentionStats::densities() const {
  std::map<std::string, double> densities;
  std::pair<double, double> all;
  for (const auto& [name, sum] : pairs()) {
    densities[name] = sum.second > 0 ? sum.first / sum.second : 0.0;
    all.first += sum.first;
    all.second += sum.second;
  }
  if (!densities.empty()) densities["all"] = all.second > 0 ? all.first / all.second : 0.0;
  return densities;
}

void AttentionStats::clear() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
}

}  // namespace vmoba::attention
