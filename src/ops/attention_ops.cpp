// Registers torch.ops.vmoba.attention and what its gradient consists of. The library is loaded for that alone:
// torch.ops.load_library, or dlopen from C++ (docs/ops.md).
//
// attention() is what a caller sees. Its autograd kernel resolves the call: full attention becomes torch's own
// operations; a sparse layer becomes the two operations attend_blocks and attend_blocks_backward, which torch.compile
// and torch.export keep as they are. The Meta kernels give shapes to traces; they depend on sizes and options alone,
// not on the device, because a trace does not show it to them.
//
// Shape letters: B samples, S video tokens, X text tokens, Z = S + X, N heads, D head size, E blocks with the text's,
// W words, U tiles, C blocks.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/attention.h"
#include "attention/block/engine.h"
#include "attention/block/tiles.h"
#include "attention/dispatch.h"
#include "attention/full/full.h"
#include "attention/method.h"
#include "attention/samples.h"
#include "core/check.h"
#include "ops/options.h"

namespace vmoba::ops {
namespace {

using attention::BlockEngine;
using attention::BlockForward;
using attention::BlockGradients;
using attention::BlockMask;
using attention::BlockProblem;
using attention::Grid;
using attention::LayerAttention;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Grid grid_of(at::IntArrayRef grid) {
  VMOBA_CHECK_INPUT(grid.size() == 3 && grid[0] >= 1 && grid[1] >= 1 && grid[2] >= 1,
                    "vmoba::attention: expected grid as [frames, height, width] of patches, each at least 1, found {}",
                    c10::str(grid));
  return {grid[0], grid[1], grid[2]};
}

// A trace with dynamic shapes is fixed to these numbers.
std::vector<int64_t> fixed(c10::SymIntArrayRef numbers) {
  std::vector<int64_t> out;
  for (const c10::SymInt& number : numbers) out.push_back(number.guard_int(__FILE__, __LINE__));
  return out;
}

// What lies behind the grid's tokens.
int64_t text_tokens_of(const at::Tensor& q_BZND, const Grid& grid) {
  const int64_t dims = q_BZND.dim();
  VMOBA_CHECK_INPUT(dims == 4, "vmoba::attention: expected q as [batch, tokens, heads, head_dim], found {} dimensions",
                    dims);
  const int64_t tokens = attention::fixed_size(q_BZND, 1);
  VMOBA_CHECK_INPUT(tokens >= grid.tokens(),
                    "vmoba::attention: expected at least the {} tokens of grid {}x{}x{} in q, found {}", grid.tokens(),
                    grid.t, grid.h, grid.w, tokens);
  return tokens - grid.tokens();
}

// ---- attend_blocks: a sparse layer over samples with equally long texts -------------------------------------------

struct SparseCall {
  BlockProblem problem;
  const BlockEngine* engine;
};

SparseCall sparse_call(const at::Tensor& q_BZND, at::IntArrayRef sizes, std::string_view options) {
  const Grid grid = grid_of(sizes);
  const LayerAttention layer = layer_of_options(options);
  return {attention::make_block_problem(q_BZND, grid, text_tokens_of(q_BZND, grid), layer),
          &attention::block_engine(layer, q_BZND)};
}

// -> out [B, Z, N, D], log-sum-exp [B, N, Z], and the mask that backward needs: of tiles [B, N, U, C] where tiles of
// queries choose, else words [B, N, E, W].
Three attend_blocks(const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::IntArrayRef grid,
                    std::string_view options) {
  const SparseCall call = sparse_call(q_BZND, grid, options);
  const BlockForward forward = attention::block_forward(*call.engine, call.problem, q_BZND, k_BZND, v_BZND);
  const BlockMask& mask = forward.selection.mask;
  return {forward.attended.out_BZND.contiguous(), forward.attended.lse_BNZ.contiguous(),
          (call.problem.tiles != nullptr ? mask.tiles_BNUC : mask.words_BNEW).contiguous()};
}

Three attend_blocks_meta(const at::Tensor& q_BZND, const at::Tensor&, const at::Tensor&, at::IntArrayRef sizes,
                         std::string_view options) {
  const Grid grid = grid_of(sizes);
  const LayerAttention layer = layer_of_options(options);
  const int64_t text_tokens = text_tokens_of(q_BZND, grid), blocks = attention::block_count(grid, layer);
  const int64_t positions = grid.tokens() + text_tokens;
  const int64_t tile = attention::query_tile(layer);
  const c10::SymInt batch = q_BZND.sym_size(0), heads = q_BZND.sym_size(2);
  const at::TensorOptions like = q_BZND.options();
  const auto sums = like.dtype(q_BZND.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  at::Tensor mask = tile == 1
                        ? at::empty_symint({batch, heads, blocks + (text_tokens > 0 ? 1 : 0), (positions + 31) / 32},
                                           like.dtype(at::kInt))
                        : at::empty_symint({batch, heads, attention::tile_count(grid, layer.chunk, tile), blocks},
                                           like.dtype(at::kByte));
  return {at::empty_symint(q_BZND.sym_sizes(), like), at::empty_symint({batch, heads, positions}, sums),
          std::move(mask)};
}

Three attend_blocks_backward(const at::Tensor& dout_BZND, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                             const at::Tensor& v_BZND, const at::Tensor& out_BZND, const at::Tensor& lse_BNZ,
                             const at::Tensor& mask, at::IntArrayRef grid, std::string_view options) {
  const SparseCall call = sparse_call(q_BZND, grid, options);
  BlockForward forward;
  if (attention::extra_branch(call.problem.layer) != nullptr) {
    // The means of such a layer are cheaper to make again than to keep.
    forward.selection = attention::block_select(*call.engine, call.problem, q_BZND, k_BZND, v_BZND);
  } else {
    (call.problem.tiles != nullptr ? forward.selection.mask.tiles_BNUC : forward.selection.mask.words_BNEW) = mask;
    forward.selection = call.engine->index(call.problem, q_BZND, k_BZND, v_BZND, std::move(forward.selection));
  }
  forward.attended = {out_BZND, lse_BNZ};
  const BlockGradients d =
      attention::block_backward(*call.engine, call.problem, q_BZND, k_BZND, v_BZND, forward, dout_BZND);
  return {d.dq_BZND.contiguous(), d.dk_BZND.contiguous(), d.dv_BZND.contiguous()};
}

Three attend_blocks_backward_meta(const at::Tensor&, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                                  const at::Tensor& v_BZND, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  at::IntArrayRef, std::string_view) {
  const auto like = [](const at::Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); };
  return {like(q_BZND), like(k_BZND), like(v_BZND)};
}

template <typename Signature>
c10::TypedOperatorHandle<Signature> operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The two as one differentiable operation, by the dispatcher: a trace sees them.
struct AttendBlocks : torch::autograd::Function<AttendBlocks> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                            const at::Tensor& v_BZND, const std::vector<int64_t>& grid, const std::string& options) {
    static const auto op = operation<decltype(attend_blocks)>("vmoba::attend_blocks");
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [out, lse, mask] = op.call(q_BZND, k_BZND, v_BZND, grid, options);
    context->save_for_backward({q_BZND, k_BZND, v_BZND, out, lse, mask});
    context->saved_data["grid"] = grid;
    context->saved_data["options"] = options;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    VMOBA_CHECK(
        !at::GradMode::is_enabled(),
        "vmoba::attention: expected a first-order backward, found create_graph; VMoBA has no second derivative");
    static const auto op = operation<decltype(attend_blocks_backward)>("vmoba::attend_blocks_backward");
    const variable_list saved = context->get_saved_variables();
    const std::vector<int64_t> grid = context->saved_data["grid"].toIntVector();
    const std::string options = context->saved_data["options"].toStringRef();
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [dq, dk, dv] =
        op.call(gradients[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], grid, options);
    return {dq, dk, dv, {}, {}};
  }
};

// ---- attention ----------------------------------------------------------------------------------------------------

at::Tensor attention_forward(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                             at::IntArrayRef sizes, at::IntArrayRef text_lengths, std::string_view options) {
  const at::NoGradGuard no_grad;  // the autograd kernel below gives gradients
  const Grid grid = grid_of(sizes);
  return attention::self_attention(q_BSND, k_BSND, v_BSND, grid, text_tokens_of(q_BSND, grid),
                                   layer_of_options(options), nullptr, text_lengths)
      .contiguous();
}

at::Tensor attention_meta(const at::Tensor& q_BSND, const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef grid,
                          c10::SymIntArrayRef, std::string_view options) {
  text_tokens_of(q_BSND, grid_of(fixed(grid)));
  layer_of_options(options);
  return at::empty_symint(q_BSND.sym_sizes(), q_BSND.options());
}

bool wants_gradient(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad());
}

at::Tensor attention_autograd(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                              c10::SymIntArrayRef sym_sizes, c10::SymIntArrayRef sym_lengths,
                              std::string_view options) {
  if (!wants_gradient(q_BSND, k_BSND, v_BSND)) {
    static const auto op = operation<decltype(attention_meta)>("vmoba::attention");
    const at::AutoDispatchBelowADInplaceOrView below;
    return op.call(q_BSND, k_BSND, v_BSND, sym_sizes, sym_lengths, options);
  }
  const std::vector<int64_t> sizes = fixed(sym_sizes);
  const std::vector<int64_t> text_lengths = fixed(sym_lengths);
  const Grid grid = grid_of(sizes);
  const LayerAttention layer = layer_of_options(options);
  const int64_t text_tokens = text_tokens_of(q_BSND, grid), blocks = attention::block_count(grid, layer);
  // A trace with dynamic shapes has no plain sizes to check; the kernels check them when it runs.
  if (!q_BSND.unsafeGetTensorImpl()->has_symbolic_sizes_strides())
    attention::check_call(q_BSND, k_BSND, v_BSND, grid, text_tokens, layer, text_lengths);
  const std::string text(options);
  return attention::attend_by_samples(
             q_BSND, k_BSND, v_BSND, grid.tokens(), text_tokens, text_lengths,
             [&](const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND, int64_t) {
               const bool full = blocks == 1 || attention::choose_full(q_BZND, blocks, layer);
               return full ? attention::full_attention(q_BZND, k_BZND, v_BZND)
                           : AttendBlocks::apply(q_BZND, k_BZND, v_BZND, sizes, text);
             })
      .contiguous();
}

}  // namespace

TORCH_LIBRARY(vmoba, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("attention(Tensor q, Tensor k, Tensor v, SymInt[] grid, SymInt[] text_lengths=[], str options='') -> Tensor",
        tags);
  m.def("attend_blocks(Tensor q, Tensor k, Tensor v, int[] grid, str options) -> (Tensor, Tensor, Tensor)", tags);
  m.def(
      "attend_blocks_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor mask, "
      "int[] grid, str options) -> (Tensor, Tensor, Tensor)",
      tags);
}

TORCH_LIBRARY_IMPL(vmoba, CPU, m) {
  m.impl("attention", attention_forward);
  m.impl("attend_blocks", attend_blocks);
  m.impl("attend_blocks_backward", attend_blocks_backward);
}

TORCH_LIBRARY_IMPL(vmoba, CUDA, m) {
  m.impl("attention", attention_forward);
  m.impl("attend_blocks", attend_blocks);
  m.impl("attend_blocks_backward", attend_blocks_backward);
}

TORCH_LIBRARY_IMPL(vmoba, Meta, m) {
  m.impl("attention", attention_meta);
  m.impl("attend_blocks", attend_blocks_meta);
  m.impl("attend_blocks_backward", attend_blocks_backward_meta);
}

TORCH_LIBRARY_IMPL(vmoba, Autograd, m) {
  m.impl("attention", attention_autograd);
}

}  // namespace vmoba::ops
