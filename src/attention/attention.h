// Attention for video tokens: the only header of this folder that models include.
//
// Shape letters: B samples, S video tokens (T*H*W, order (t*H + h)*W + w), X text tokens behind them, N heads, D head
// size, C blocks. Tensors may live on CPU or GPU, in fp32, fp64 or bf16; inputs may be strided (D contiguous). Nothing
// here keeps state between calls except caches of partition tables. The semantics of every word are in
// docs/attention.md (VMoBA, arXiv 2506.23858, and our decisions where the paper is silent).
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"

namespace vmoba::attention {

// The grid of latent patches of one video sample.
struct Grid {
  int64_t t = 1, h = 1, w = 1;
  int64_t tokens() const { return t * h * w; }
  bool operator==(const Grid&) const = default;
};

enum class Partition { kTemporal, kSpatial, kSpatiotemporal };
enum class SelectMode { kThreshold, kTopk };
enum class Pool { kQueryHead, kBlock, kHeadGlobal, kOverall };
const char* partition_name(Partition partition);  // "temporal" | "spatial" | "spatiotemporal"

// The `attention:` group of a configuration.
struct AttentionConfig {
  std::string backend = "vmoba";        // full | vmoba
  std::string implementation = "auto";  // auto | reference | native
  bool full_when_faster = true;
  int64_t temporal_chunk = 3;
  std::vector<int64_t> spatial_chunk = {6, 8};
  std::vector<int64_t> spatiotemporal_chunk = {6, 9, 16};
  int64_t temporal_layers = 1, spatial_layers = 1, spatiotemporal_layers = 1;
  std::string select = "threshold";  // threshold | topk
  std::string pool = "head_global";  // query_head | block | head_global | overall
  double tau = 0.25;
  int64_t temporal_topk = 2, spatial_topk = 12, spatiotemporal_topk = 16;
  int64_t dense_layers = 0;
  int64_t dense_steps = 0;
  int64_t dense_warmup_steps = 0;

  void visit(ConfigVisitor& v);
  // Checks that fields agree with each other (for example topk with pool block); throws Error(kInput).
  void validate() const;
};

// What one layer does: resolved from AttentionConfig by layer_attention().
struct LayerAttention {
  bool sparse = false;  // false: full attention
  Partition partition = Partition::kTemporal;
  std::array<int64_t, 3> chunk = {1, 0, 0};  // (ct, ch, cw); 0 = the whole dimension
  SelectMode select = SelectMode::kThreshold;
  Pool pool = Pool::kHeadGlobal;
  double tau = 0.25;
  int64_t topk = 1;
  std::string implementation = "auto";
  bool full_when_faster = false;  // with auto: full attention where the native kernels would be slower than it
};

// Layer `layer` of a network; `dense` forces full attention (dense_steps, dense_warmup_steps).
LayerAttention layer_attention(const AttentionConfig& config, int64_t layer, bool dense);

// Collects how much was attended. record() never synchronises with a GPU; reading does.
class AttentionStats {
 public:
  // `pairs`: scalar tensor, attended (query, key) pairs; `total`: all pairs, B*N*(S+X)^2.
  void record(const std::string& name, const at::Tensor& pairs, double total);
  // Mean density (attended / all pairs) by partition name, "full" included where it ran, and "all" over every layer.
  std::map<std::string, double> densities() const;
  // (attended, all) pairs by partition name, "full" included; for sums over ranks.
  std::map<std::string, std::pair<double, double>> pairs() const;
  void clear();

 private:
  struct Entry {
    std::string name;
    at::Tensor pairs;
    double total;
  };
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

// Self attention of a layer: q, k, v [B, S+X, N, D] -> [B, S+X, N, D], differentiable in q, k, v (the selection is
// held constant). `stats` may be null. Throws Error(kInput) where shapes and grid disagree.
at::Tensor self_attention(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                          const Grid& grid, int64_t text_tokens, const LayerAttention& layer, AttentionStats* stats);

// Full attention of q [B, S, N, D] over k, v [B, L, N, D] (cross attention); differentiable.
at::Tensor cross_attention(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND);

// FLOPs of one forward call for one sample (docs/attention.md): full is 4 S^2 D N; sparse adds the gate.
double attention_flops(int64_t tokens, int64_t heads, int64_t head_dim, double density, int64_t blocks_of_gate);

// Blocks that `layer` makes of `grid` (1 for full attention).
int64_t block_count(const Grid& grid, const LayerAttention& layer);

}  // namespace vmoba::attention
