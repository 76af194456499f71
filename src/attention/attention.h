// Attention for video tokens: the only header of this folder that models include.
//
// Shape letters: B samples, S video tokens (T*H*W, order (t*H + h)*W + w), X text tokens behind them, N heads, D head
// size, C blocks. Tensors may live on CPU or GPU, in fp32, fp64 or bf16; inputs may be strided (D contiguous). Nothing
// here keeps state between calls except caches of partition tables. The semantics of every word are in
// docs/attention.md (VMoBA, arXiv 2506.23858, and our decisions where the paper is silent).
#pragma once
#include <ATen/core/Tensor.h>

#include <any>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "attention/result_tape.h"
#include "core/choice.h"
#include "core/config.h"

namespace vmoba::attention {

// The grid of latent patches of one video sample.
struct Grid {
  int64_t t = 1, h = 1, w = 1;
  int64_t tokens() const { return t * h * w; }
  bool operator==(const Grid&) const = default;
};

enum class Partition { kTemporal, kSpatial, kSpatiotemporal };
const Choices<Partition>& choices_of(Partition);

// Who computes a sparse method.
enum class Implementation { kAuto, kReference, kNative };
const Choices<Implementation>& choices_of(Implementation);

struct Method;                // a row of the table of methods (attention/method.h)
const Method& full_method();  // full attention

// The `attention:` group of a configuration: what all methods share, and each method's own part in the same group.
struct AttentionConfig {
  std::string backend = "vmoba";  // the name of a method
  Implementation implementation = Implementation::kAuto;
  bool full_when_faster = true;
  int64_t dense_layers = 0;
  int64_t dense_steps = 0;
  int64_t dense_warmup_steps = 0;

  AttentionConfig();  // every method's part at its defaults
  // The part of the method whose struct is Part: config.part<VmobaConfig>().tau.
  template <typename Part>
  Part& part();
  template <typename Part>
  const Part& part() const {
    return const_cast<AttentionConfig*>(this)->part<Part>();
  }

  void visit(ConfigVisitor& v);
  // Checks ranges, and that fields agree with each other (for example topk with pool block); throws Error(kInput).
  void validate() const;

 private:
  friend struct LayerAttention layer_attention(const AttentionConfig& config, int64_t layer, bool dense,
                                               double sparsity);
  friend struct Stage training_stage(const AttentionConfig& config, int64_t step);
  friend void check_network(const AttentionConfig& config, int64_t layers, int64_t heads);
  const std::any& part_of(const Method& method) const;
  std::vector<std::any> parts_;  // in the order of the table of methods
};

// Throws Error(kInput) where the configuration names what a network of so many layers and heads lacks.
void check_network(const AttentionConfig& config, int64_t layers, int64_t heads);

// What one layer does: resolved from AttentionConfig by layer_attention().
struct LayerAttention {
  const Method* method = &full_method();
  Partition partition = Partition::kTemporal;
  std::array<int64_t, 3> chunk = {1, 0, 0};  // (ct, ch, cw); 0 = the whole dimension
  std::any rule;                             // how the method selects: a struct of its own
  Implementation implementation = Implementation::kAuto;
  bool full_when_faster = false;  // with auto: full attention where the native kernels would be slower than it
  // Which layer of the network it is, and which of its heads is the first of a call's (ranks may share the heads of a
  // sample out): for choices that a hash makes, and for statistics.
  int64_t index = 0, first_head = 0;

  bool sparse() const;  // false: full attention
};

// Layer `layer` of a network; `dense` forces full attention (dense_steps, dense_warmup_steps). A layer that is asked
// for density d attends d^sparsity.
LayerAttention layer_attention(const AttentionConfig& config, int64_t layer, bool dense, double sparsity = 1);

// How sparse an optimiser step is: dense at first (dense_warmup_steps), then with a density that falls from 1 to the
// configured one (density_steps).
struct Stage {
  bool dense = false;
  double sparsity = 1;  // exponent of densities, 0 to 1
};
// Of the step behind `step` others.
Stage training_stage(const AttentionConfig& config, int64_t step);

// Collects how much was attended. record() never synchronises with a GPU; reading does.
class AttentionStats {
 public:
  using Pairs = std::pair<double, double>;  // attended, all
  struct Sums {
    std::map<std::string, Pairs> by_partition;             // "full" where full attention ran
    std::map<std::pair<int64_t, int64_t>, Pairs> by_head;  // (layer of the network, head)
  };

  // `pairs_N`: (query, key) pairs that each head of the call attended; `total`: all pairs of one head, B*(S+X)^2.
  void record(const std::string& name, const LayerAttention& layer, const at::Tensor& pairs_N, double total);
  // What was recorded, in its order: fp64 values on the device of the first. Nothing waits for them.
  at::Tensor recorded() const;
  // From these values on the host; and from a copy made now, which waits for the device.
  Sums sums(const double* recorded) const;
  Sums sums() const;
  // Mean density (attended / all pairs) by partition name, "full" included where it ran, and "all" over every layer.
  std::map<std::string, double> densities() const;
  void clear();

 private:
  struct Entry {
    std::string name;
    int64_t layer, first_head;
    at::Tensor pairs_N;
    double total;
  };
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

// A tensor that a method learns in each of its layers, fp32. Pretrained files do not have it: it starts at `initial`.
struct LearntParameter {
  std::string name;            // other methods have none of the same name
  std::vector<int64_t> shape;  // the first size is that of the heads, which ranks may share out
  double initial = 0;
};
std::vector<LearntParameter> learnt_parameters(const LayerAttention& layer, int64_t heads, int64_t head_dim);

// What layers of any method and rule could learn.
std::vector<LearntParameter> all_learnt_parameters(int64_t heads, int64_t head_dim);

// Self attention of a layer: q, k, v [B, S+X, N, D] -> [B, S+X, N, D], differentiable in q, k, v and `learnt` (the
// selection is held constant). `stats` may be null. `text_lengths` (B numbers of 0 to X; empty: X each): text tokens
// beyond a sample's length are attended by nobody, and their rows of the result are zeros. `learnt`: tensors for
// learnt_parameters(), in their order. `tape` records or replays the results; null: neither. Throws Error(kInput) where
// shapes, lengths and grid disagree.
at::Tensor self_attention(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                          const Grid& grid, int64_t text_tokens, const LayerAttention& layer, AttentionStats* stats,
                          at::IntArrayRef text_lengths = {}, at::TensorList learnt = {}, ResultTape* tape = nullptr);

// Full attention of q [B, S, N, D] over k, v [B, L, N, D] (cross attention); differentiable. With `lengths` (B numbers
// of 1 to L) a sample attends its first keys only.
at::Tensor cross_attention(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND,
                           at::IntArrayRef lengths = {}, ResultTape* tape = nullptr);

// FLOPs of one forward call for one sample (docs/attention.md): full is 4 S^2 D N; sparse adds the gate.
double attention_flops(int64_t tokens, int64_t heads, int64_t head_dim, double density, int64_t blocks_of_gate);

// The same of a layer over the tokens of `grid`, with the density that its selection has (full attention: 1).
double layer_flops(const LayerAttention& layer, const Grid& grid, int64_t heads, int64_t head_dim, double density);

// Bytes that a layer keeps for backward beside q, k, v and its result, with the native kernels in bf16: copies in the
// order of blocks and lists of what meets. Of one sample; 0 for full attention.
double selection_bytes(const LayerAttention& layer, const Grid& grid, int64_t text_tokens, int64_t heads,
                       int64_t head_dim);

// Mean density that the sparse ones of a network's `layers` layers are expected to have; 1 where none is sparse.
double expected_density(const AttentionConfig& config, const Grid& grid, int64_t layers);

// Why one head's selection depends on other heads in a network of `layers` layers, as the end of "expected ..., found
// ...", with what to change; "" where every head selects on its own.
std::string heads_select_together(const AttentionConfig& config, int64_t layers);

// Blocks that `layer` makes of `grid` (1 for full attention).
int64_t block_count(const Grid& grid, const LayerAttention& layer);

template <typename Part>
Part& AttentionConfig::part() {
  for (std::any& part : parts_)
    if (Part* found = std::any_cast<Part>(&part)) return *found;
  throw_runtime("expected the configuration of a method that is in the table of methods");
}

}  // namespace vmoba::attention
