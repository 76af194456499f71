#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>

#include <algorithm>

#include "attention/native/call.h"
#include "attention/native/native.h"

namespace vmoba::attention::native {
namespace {

// Partial outputs held at a time: large enough that few groups of heads are needed, small beside activations.
constexpr int64_t kPartialBudgetBytes = int64_t(1100) << 20;

kernels::SlotLists views(const Selection& selection) {
  const RowLists& lists = selection.lists;
  return {static_cast<uint32_t*>(selection.mask.words_BNEW.data_ptr()),
          lists.word_rank_BNEW.data_ptr<int32_t>(),
          lists.length_BNE.data_ptr<int32_t>(),
          lists.start_BNF.data_ptr<int64_t>(),
          lists.row_BNR.data_ptr<int32_t>(),
          lists.row_BNR.size(2)};
}

class NativeEngine final : public BlockEngine {
 public:
  bool native() const override { return true; }

  Selection index(const BlockProblem& problem, const at::Tensor&, const at::Tensor& k_BZND, const at::Tensor& v_BZND,
                  Selection selection) const override {
    const c10::cuda::CUDAGuard guard(k_BZND.device());
    const Call call(problem, k_BZND);
    const kernels::Shape& s = call.shape;
    const auto i32 = k_BZND.options().dtype(at::kInt);
    selection.mask = with_words(problem, std::move(selection.mask));
    selection.lists.word_rank_BNEW = call.empty_mask(k_BZND);
    selection.lists.length_BNE = at::empty({s.batch, s.heads, s.block_count()}, i32);
    selection.lists.start_BNF = at::empty({s.batch, s.heads, s.block_count() + 1}, i32.dtype(at::kLong));
    selection.lists.row_BNR = at::empty({s.batch, s.heads, kernels::slots_per_head_capacity(s)}, i32);
    const at::Tensor scratch = bytes(kernels::index_workspace_bytes(s), k_BZND);
    check_launch(
        kernels::index({s, call.partition, views(selection), scratch.data_ptr()}, c10::cuda::getCurrentCUDAStream()),
        "index");
    if (!call.partition.identity && !selection.k_blocks_BZND.defined()) {
      const at::Tensor order_Z = token_order_Z(*problem.tables, problem.text_tokens);
      selection.k_blocks_BZND = prepared(k_BZND).index_select(1, order_Z);
      selection.v_blocks_BZND = prepared(v_BZND).index_select(1, order_Z);
    }
    return selection;
  }

  Attended attend(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                  const at::Tensor& v_BZND, const Selection& selection) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor q = prepared(q_BZND);
    const Call call(problem, q);
    const bool copied = !call.partition.identity;
    const at::Tensor k_blocks = copied ? selection.k_blocks_BZND : prepared(k_BZND);
    const at::Tensor v_blocks = copied ? selection.v_blocks_BZND : prepared(v_BZND);

    const kernels::Shape& s = call.shape;
    const int64_t per_head = kernels::slots_per_head_capacity(s);
    const int64_t budget = kPartialBudgetBytes / (2 * s.head_dim + 4);
    const int64_t slots = std::max(per_head, std::min(budget, per_head * s.batch * s.heads));
    const at::Tensor out = at::empty(q.sizes(), q.options());
    const at::Tensor lse_BNZ = at::empty({s.batch, s.heads, s.tokens()}, q.options().dtype(at::kFloat));
    const at::Tensor scratch = bytes(kernels::forward_workspace_bytes(s, slots), q);
    check_launch(
        kernels::forward({s, call.partition, views(selection), view(q), view(k_blocks), view(v_blocks), view(out),
                          lse_BNZ.data_ptr<float>(), softmax_scale(q_BZND), slots, scratch.data_ptr()},
                         c10::cuda::getCurrentCUDAStream()),
        "forward");
    return {trimmed(out, q_BZND.size(3)), lse_BNZ};
  }

  BlockGradients backward(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                          const at::Tensor& v_BZND, const Selection& selection, const Attended& attended,
                          const at::Tensor& dout_BZND) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor q = prepared(q_BZND), out = prepared(attended.out_BZND), dout = prepared(dout_BZND);
    const Call call(problem, q);
    const bool copied = !call.partition.identity;
    const at::Tensor k_blocks = copied ? selection.k_blocks_BZND : prepared(k_BZND);
    const at::Tensor v_blocks = copied ? selection.v_blocks_BZND : prepared(v_BZND);
    const bool deterministic = at::globalContext().deterministicAlgorithms();
    const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(q.sizes(), q.options()),
                     dv = at::empty(q.sizes(), q.options());
    const at::Tensor scratch = bytes(kernels::backward_workspace_bytes(call.shape, deterministic), q);
    kernels::BackwardArgs args;
    args.shape = call.shape;
    args.partition = call.partition;
    args.lists = views(selection);
    args.q = view(q);
    args.out = view(out);
    args.dout = view(dout);
    args.k_blocks = view(k_blocks);
    args.v_blocks = view(v_blocks);
    args.lse = attended.lse_BNZ.const_data_ptr<float>();
    args.dq = view(dq);
    args.dk = view(dk);
    args.dv = view(dv);
    args.scale = softmax_scale(q_BZND);
    args.deterministic = deterministic;
    args.workspace = scratch.data_ptr();
    check_launch(kernels::backward(args, c10::cuda::getCurrentCUDAStream()), "backward");
    const int64_t head_dim = q_BZND.size(3);
    return {trimmed(dq, head_dim), trimmed(dk, head_dim), trimmed(dv, head_dim)};
  }
};

}  // namespace

std::string unsupported_reason(const at::Tensor& q_BZND) {
  if (!q_BZND.is_cuda()) return "tensors on the CPU";
  if (q_BZND.scalar_type() != at::kBFloat16) return fmt::format("{} tensors", c10::toString(q_BZND.scalar_type()));
  // A traced tensor may have symbolic sizes.
  const int64_t head_dim = q_BZND.sym_size(3).guard_int(__FILE__, __LINE__);
  if (head_dim > 128) return fmt::format("a head size of {}", head_dim);
  if (kernels::kernel_family(q_BZND.device().index()) == 0) {
    cudaDeviceProp properties{};
    cudaGetDeviceProperties(&properties, q_BZND.device().index());
    return fmt::format("a {} (compute capability {}.{})", properties.name, properties.major, properties.minor);
  }
  return "";
}

const BlockEngine& engine() {
  static const NativeEngine instance;
  return instance;
}

}  // namespace vmoba::attention::native
