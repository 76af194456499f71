#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/format.h>

#include <algorithm>

#include "attention/native/call.h"
#include "attention/native/native.h"
#include "attention/native/row_memory.h"

namespace vmoba::attention::native {
namespace {

using ShapeHeads = Heads<kernels::Shape>;

// Lists of `shape`, to be filled.
RowLists empty_lists(const kernels::Shape& s, const at::Tensor& like) {
  const auto i32 = like.options().dtype(at::kInt);
  RowLists lists;
  lists.word_rank_BNEW = at::empty({s.batch, s.heads, s.block_count(), s.mask_words()}, i32);
  lists.length_BNE = at::empty({s.batch, s.heads, s.block_count()}, i32);
  lists.start_BNF = at::empty({s.batch, s.heads, s.block_count() + 1}, i32.dtype(at::kLong));
  lists.row_BNR = at::empty({s.batch, s.heads, kernels::slots_per_head_capacity(s)}, i32);
  return lists;
}

kernels::SlotLists views(uint32_t* mask, const RowLists& lists) {
  return {mask,
          lists.word_rank_BNEW.data_ptr<int32_t>(),
          lists.length_BNE.data_ptr<int32_t>(),
          lists.start_BNF.data_ptr<int64_t>(),
          lists.row_BNR.data_ptr<int32_t>(),
          lists.row_BNR.size(2)};
}

void launch_index(const kernels::Shape& shape, const kernels::PartitionView& partition, const kernels::SlotLists& lists,
                  const at::Tensor& like) {
  const at::Tensor scratch = bytes(kernels::index_workspace_bytes(shape), like);
  check_launch(kernels::index({shape, partition, lists, scratch.data_ptr()}, c10::cuda::getCurrentCUDAStream()),
               "index");
}

class NativeEngine final : public BlockEngine {
 public:
  bool native() const override { return true; }

  Selection index(const BlockProblem& problem, const at::Tensor&, const at::Tensor& k_BZND, const at::Tensor& v_BZND,
                  Selection selection) const override {
    const c10::cuda::CUDAGuard guard(k_BZND.device());
    const Call call(problem, k_BZND);
    const kernels::Shape& s = call.shape;
    selection.mask = with_words(problem, std::move(selection.mask));
    auto* const mask = static_cast<uint32_t*>(selection.mask.words_BNEW.data_ptr());
    if (keeps_row_lists(s)) {
      selection.lists = empty_lists(s, k_BZND);
      launch_index(s, call.partition, views(mask, selection.lists), k_BZND);
    } else {
      const at::Tensor rank_BNEW = call.empty_mask(k_BZND);
      selection.lists.length_BNE = at::empty({s.batch, s.heads, s.block_count()}, rank_BNEW.options());
      kernels::SlotLists lengths;
      lengths.mask = mask;
      lengths.word_rank = rank_BNEW.data_ptr<int32_t>();
      lengths.length = selection.lists.length_BNE.data_ptr<int32_t>();
      launch_index(s, call.partition, lengths, k_BZND);
    }
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
    const at::Tensor out = at::empty(q.sizes(), q.options());
    const at::Tensor lse_BNZ =
        at::empty({call.shape.batch, call.shape.heads, call.shape.tokens()}, q.options().dtype(at::kFloat));
    at::Tensor scratch;
    const auto forward = [&](const ShapeHeads& heads, const kernels::SlotLists& lists, int64_t slots) {
      reserve(scratch, kernels::forward_workspace_bytes(heads.shape, slots), q);
      const kernels::ForwardArgs args{heads.shape,
                                      call.partition,
                                      lists,
                                      heads.view_of(q),
                                      heads.view_of(k_blocks),
                                      heads.view_of(v_blocks),
                                      heads.view_of(out),
                                      heads.of<float>(lse_BNZ),
                                      softmax_scale(q_BZND),
                                      slots,
                                      scratch.data_ptr()};
      check_launch(kernels::forward(args, c10::cuda::getCurrentCUDAStream()), "forward");
    };
    if (selection.lists.row_BNR.defined()) {
      const ShapeHeads all{call.shape};
      const int64_t per_head = selection.lists.row_BNR.size(2), heads = int64_t(call.shape.batch) * call.shape.heads;
      const int64_t budget = kPartialBudgetBytes / partial_bytes(call.shape, 1);
      forward(all, views(all.of<uint32_t>(selection.mask.words_BNEW), selection.lists),
              std::max(per_head, std::min(budget, per_head * heads)));
    } else {
      forward_by_rows(call, selection, q, forward);
    }
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
    at::Tensor scratch;
    const auto backward = [&](const ShapeHeads& heads, const RowLists& lists) {
      reserve(scratch, kernels::backward_workspace_bytes(heads.shape, deterministic), q);
      kernels::BackwardArgs args;
      args.shape = heads.shape;
      args.partition = call.partition;
      args.lists = views(heads.of<uint32_t>(selection.mask.words_BNEW), lists);
      args.q = heads.view_of(q);
      args.out = heads.view_of(out);
      args.dout = heads.view_of(dout);
      args.k_blocks = heads.view_of(k_blocks);
      args.v_blocks = heads.view_of(v_blocks);
      args.lse = heads.of<float>(attended.lse_BNZ);
      args.dq = heads.view_of(dq);
      args.dk = heads.view_of(dk);
      args.dv = heads.view_of(dv);
      args.scale = softmax_scale(q_BZND);
      args.deterministic = deterministic;
      args.workspace = scratch.data_ptr();
      check_launch(kernels::backward(args, c10::cuda::getCurrentCUDAStream()), "backward");
    };
    if (selection.lists.row_BNR.defined()) {
      backward({call.shape}, selection.lists);
    } else {
      for_each_heads(call.shape, backward_heads(call.shape, deterministic), [&](const ShapeHeads& heads) {
        const RowLists lists = empty_lists(heads.shape, q);
        launch_index(heads.shape, call.partition, views(heads.of<uint32_t>(selection.mask.words_BNEW), lists), q);
        backward(heads, lists);
      });
    }
    const int64_t head_dim = q_BZND.size(3);
    return {trimmed(dq, head_dim), trimmed(dk, head_dim), trimmed(dv, head_dim)};
  }

 private:
  // A head at a time, and of it some rows at a time, each with lists of their own.
  template <typename Forward>
  static void forward_by_rows(const Call& call, const Selection& selection, const at::Tensor& like,
                              const Forward& forward) {
    const int32_t words = call.shape.mask_words(), step = forward_row_words(call.shape);
    kernels::Shape largest = call.shape;
    largest.batch = largest.heads = 1;
    largest.row_words = step;
    const RowLists lists = empty_lists(largest, like);
    for_each_heads(call.shape, 1, [&](ShapeHeads part) {
      const kernels::SlotLists slots = views(part.of<uint32_t>(selection.mask.words_BNEW), lists);
      for (int32_t& first = part.shape.first_word; first < words; first += step) {
        part.shape.row_words = std::min(step, words - first);
        launch_index(part.shape, call.partition, slots, like);
        forward(part, slots, slots.row_stride);
      }
    });
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
