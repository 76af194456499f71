#include "attention/dispatch.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>

#include "attention/kernels/kernels.h"
#include "attention/method.h"
#include "attention/native/native.h"
#include "attention/reference/reference.h"
#include "core/check.h"
#include "core/log.h"

namespace vmoba::attention {
namespace {

// Once for every size and partition.
void log_full_choice(int64_t tokens, int64_t blocks, const LayerAttention& layer) {
  static std::mutex mutex;
  static std::set<std::pair<int64_t, int64_t>> seen;
  const std::lock_guard lock(mutex);
  if (!seen.emplace(tokens, blocks).second) return;
  log_info(
      "attention: full attention in place of the {} partition of {} tokens in {} blocks, which would be slower; "
      "attention.full_when_faster=false keeps {}",
      choice_word(layer.partition), tokens, blocks, layer.method->name);
}

// Full attention takes less time below so many tokens, or from this density on.
struct BreakEven {
  int64_t tokens;
  double density;
};

// Of forward and backward together. One rule for training and sampling: with activation checkpointing a layer runs in
// both modes and must compute the same.
BreakEven break_even(int family, bool tiles) {
  // At about 2,400 tokens, of the forward alone at 4,100; at densities of 0.77 (13,440 tokens) to 0.92 (55,296), which
  // thresholds a little higher give.
  if (family != 80) return {3000, 0.8};
  // On an H200 against FlashAttention-2, which is mma.sync too: tiles at 0.6 (13,824 and 55,296 tokens), lists of
  // single queries at 0.44 and 0.53.
  return {3000, tiles ? 0.6 : 0.45};
}

}  // namespace

void check_tensor(const char* name, const at::Tensor& x_BZND) {
  VMOBA_CHECK_INPUT(x_BZND.defined() && x_BZND.dim() == 4 && x_BZND.numel() > 0,
                    "attention: expected {} as a non-empty [batch, tokens, heads, head_dim], found {}", name,
                    x_BZND.defined() ? c10::str(x_BZND.sizes()) : "no tensor");
  const at::ScalarType dtype = x_BZND.scalar_type();
  VMOBA_CHECK_INPUT(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "attention: expected {} in fp32, fp64 or bf16, found {}", name, c10::toString(dtype));
}

void check_tokens(const at::Tensor& q_BZND, const Grid& grid, int64_t text_tokens) {
  VMOBA_CHECK_INPUT(grid.t >= 1 && grid.h >= 1 && grid.w >= 1 && text_tokens >= 0,
                    "attention: expected a grid of at least 1x1x1 and text tokens of at least 0, found {}x{}x{} and {}",
                    grid.t, grid.h, grid.w, text_tokens);
  VMOBA_CHECK_INPUT(q_BZND.size(1) == grid.tokens() + text_tokens,
                    "attention: expected {} tokens (grid {}x{}x{} and {} of text), found q {}",
                    grid.tokens() + text_tokens, grid.t, grid.h, grid.w, text_tokens, c10::str(q_BZND.sizes()));
}

bool full_is_faster(int64_t tokens, int64_t blocks, const LayerAttention& layer, int family) {
  const auto [few_tokens, dense] = break_even(family, query_tile(layer) != 1);
  const double density = layer.method->expected_density(layer, blocks);
  return tokens < few_tokens || std::max(density, 1.0 / double(blocks)) >= dense;
}

bool choose_full(const at::Tensor& q_BZND, int64_t blocks, const LayerAttention& layer) {
  const bool full =
      layer.full_when_faster && layer.implementation == Implementation::kAuto &&
      native::unsupported_reason(q_BZND).empty() &&
      full_is_faster(fixed_size(q_BZND, 1), blocks, layer, kernels::kernel_family(q_BZND.device().index()));
  if (full) log_full_choice(fixed_size(q_BZND, 1), blocks, layer);
  return full;
}

int64_t fixed_size(const at::Tensor& x, int64_t dim) {
  return x.sym_size(dim).guard_int(__FILE__, __LINE__);
}

const BlockEngine& block_engine(Implementation implementation, const at::Tensor& q_BZND) {
  if (implementation == Implementation::kReference) return reference::engine();
  const std::string reason = native::unsupported_reason(q_BZND);
  if (reason.empty()) return native::engine();
  VMOBA_CHECK_INPUT(implementation != Implementation::kNative,
                    "attention.implementation=native: expected bf16 tensors of head size up to 128 on a GPU of compute "
                    "capability 8.0 or later, found {}; set attention.implementation to auto or reference",
                    reason);
  return reference::engine();
}

const BlockEngine& block_engine(const LayerAttention& layer, const at::Tensor& q_BZND) {
  const BlockEngine& engine = block_engine(layer.implementation, q_BZND);
  return engine.native() && query_tile(layer) != 1 ? native::tile_engine() : engine;
}

BlockProblem make_block_problem(const at::Tensor& q_BZND, const Grid& grid, int64_t text_tokens,
                                const LayerAttention& layer) {
  check_tensor("q", q_BZND);
  check_tokens(q_BZND, grid, text_tokens);
  if (layer.method->check != nullptr) layer.method->check(layer);
  BlockProblem problem{grid, text_tokens, layer, partition_tables(grid, layer.chunk, q_BZND.device())};
  if (const int64_t tile = query_tile(layer); tile != 1)
    problem.tiles = tile_tables(grid, layer.chunk, tile, q_BZND.device());
  return problem;
}

}  // namespace vmoba::attention
