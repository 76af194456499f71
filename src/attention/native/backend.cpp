#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/kernels.h"
#include "attention/native/native.h"
#include "core/check.h"

namespace vmoba::attention::native {
namespace {

// Partial outputs held at a time: large enough that few groups of heads are needed, small beside activations.
constexpr int64_t kPartialBudgetBytes = int64_t(1100) << 20;

kernels::TensorView view(const at::Tensor& x_BZND) {
  return {x_BZND.data_ptr(), x_BZND.stride(0), x_BZND.stride(1), x_BZND.stride(2)};
}

// The kernels read rows of D contiguous, 16-byte aligned elements.
at::Tensor aligned(const at::Tensor& x_BZND) {
  const bool rows = x_BZND.stride(3) == 1 && x_BZND.stride(0) % 8 == 0 && x_BZND.stride(1) % 8 == 0 &&
                    x_BZND.stride(2) % 8 == 0 && reinterpret_cast<uintptr_t>(x_BZND.data_ptr()) % 16 == 0;
  return rows ? x_BZND : x_BZND.contiguous();
}

void check_launch(cudaError_t error, const char* stage) {
  VMOBA_CHECK(error == cudaSuccess,
              "attention: the native {} stage failed: {}; attention.implementation=reference "
              "runs without these kernels",
              stage, cudaGetErrorString(error));
}

at::Tensor bytes(int64_t count, const at::Tensor& like) {
  return at::empty({std::max<int64_t>(count, 1)}, like.options().dtype(at::kByte));
}

// Views of one call's tables and lists.
struct Call {
  kernels::Shape shape;
  kernels::PartitionView partition;

  Call(const SparseProblem& problem, const at::Tensor& q_BZND) {
    const PartitionTables& tables = *problem.tables;
    shape.batch = int32_t(q_BZND.size(0));
    shape.heads = int32_t(q_BZND.size(2));
    shape.head_dim = int32_t(q_BZND.size(3));
    shape.video_tokens = int32_t(tables.tokens);
    shape.text_tokens = int32_t(problem.text_tokens);
    shape.blocks = int32_t(tables.blocks);
    partition.token_of = tables.token_of_S.const_data_ptr<int32_t>();
    partition.block_of = tables.block_of_S.const_data_ptr<int32_t>();
    partition.block_start = tables.block_start_C1.const_data_ptr<int32_t>();
    partition.max_block_tokens = int32_t(tables.max_block_tokens);
    partition.identity = tables.identity;
  }
};

// The lists as tensors; the order is that of SparseForward::selection.
struct Lists {
  at::Tensor mask, word_rank, length, start, row;

  Lists(const kernels::Shape& s, const at::Tensor& like) {
    const auto i32 = like.options().dtype(at::kInt);
    mask = at::empty({s.batch, s.heads, s.block_count(), s.mask_words()}, i32);
    word_rank = at::empty_like(mask);
    length = at::empty({s.batch, s.heads, s.block_count()}, i32);
    start = at::empty({s.batch, s.heads, s.block_count() + 1}, i32.dtype(at::kLong));
    row = at::empty({s.batch, s.heads, kernels::slots_per_head_capacity(s)}, i32);
  }
  explicit Lists(const std::vector<at::Tensor>& saved)
      : mask(saved[0]), word_rank(saved[1]), length(saved[2]), start(saved[3]), row(saved[4]) {}

  kernels::SlotLists views() const {
    return {static_cast<uint32_t*>(mask.data_ptr()),
            word_rank.data_ptr<int32_t>(),
            length.data_ptr<int32_t>(),
            start.data_ptr<int64_t>(),
            row.data_ptr<int32_t>(),
            row.size(2)};
  }
};

kernels::SelectParams select_params(const LayerAttention& layer) {
  kernels::SelectParams out;
  out.mode = layer.select == SelectMode::kTopk ? kernels::SelectMode::kTopk : kernels::SelectMode::kThreshold;
  switch (layer.pool) {
    case Pool::kQueryHead:
      out.pool = kernels::Pool::kQueryHead;
      break;
    case Pool::kBlock:
      out.pool = kernels::Pool::kBlock;
      break;
    case Pool::kHeadGlobal:
      out.pool = kernels::Pool::kHeadGlobal;
      break;
    case Pool::kOverall:
      out.pool = kernels::Pool::kOverall;
      break;
  }
  out.tau = layer.tau;
  out.topk = int32_t(layer.topk);
  return out;
}

// Stages 1 to 3: fills the lists; K and V in block order follow them where the partition permutes tokens.
Selection choose(const SparseProblem& problem, const Call& call, const at::Tensor& q, const at::Tensor& k,
                 const at::Tensor& v, cudaStream_t stream) {
  const kernels::Shape& s = call.shape;
  const Lists lists(s, q);
  Selection out = {lists.mask, lists.word_rank, lists.length, lists.start, lists.row};
  const auto f32 = q.options().dtype(at::kFloat);
  const at::Tensor kbar = at::empty({s.batch, s.heads, s.blocks, s.head_dim}, f32);
  const at::Tensor gate = at::empty({s.batch, s.heads, s.blocks, s.video_tokens}, f32);
  const at::Tensor range = at::empty({s.batch, s.heads, 2}, f32);
  const at::Tensor scratch = bytes(kernels::gate_workspace_bytes(s), q);
  kernels::GateArgs gate_args;
  gate_args.shape = s;
  gate_args.partition = call.partition;
  gate_args.q = view(q);
  gate_args.k = view(k);
  gate_args.v = view(v);
  gate_args.kbar = kbar.data_ptr<float>();
  gate_args.gate = gate.data_ptr<float>();
  gate_args.range = range.data_ptr<float>();
  gate_args.workspace = scratch.data_ptr();
  if (!call.partition.identity) {
    const auto head_major = [&] { return at::empty({s.batch, s.heads, s.tokens(), s.head_dim}, q.options()); };
    const at::Tensor k_copy = head_major(), v_copy = head_major();
    gate_args.k_blocks = k_copy.data_ptr();
    gate_args.v_blocks = v_copy.data_ptr();
    out.push_back(k_copy.transpose(1, 2));
    out.push_back(v_copy.transpose(1, 2));
  }
  check_launch(kernels::gate(gate_args, stream), "gate");

  const kernels::SelectParams params = select_params(problem.layer);
  const at::Tensor select_scratch = bytes(kernels::select_workspace_bytes(s, params), q);
  check_launch(kernels::select({s, call.partition, params, gate.data_ptr<float>(), range.data_ptr<float>(),
                                lists.views(), select_scratch.data_ptr()},
                               stream),
               "select");
  const at::Tensor index_scratch = bytes(kernels::index_workspace_bytes(s), q);
  check_launch(kernels::index({s, call.partition, lists.views(), index_scratch.data_ptr()}, stream), "index");
  return out;
}

// Attended (query, key) pairs, on the device.
at::Tensor attended_pairs(const SparseProblem& problem, const Call& call, const Lists& lists) {
  at::Tensor keys_E = problem.tables->block_tokens_C;
  if (problem.text_tokens > 0) keys_E = at::cat({keys_E, at::full({1}, double(problem.text_tokens), keys_E.options())});
  return (lists.length.to(at::kDouble) * keys_E).sum();
}

// Head sizes without a kernel are filled up with zeros, which change no score and no output.
int64_t kernel_head_dim(int64_t head_dim) {
  return head_dim <= 64 ? 64 : 128;
}

at::Tensor prepared(const at::Tensor& x_BZND) {
  const int64_t missing = kernel_head_dim(x_BZND.size(3)) - x_BZND.size(3);
  return missing > 0 ? at::constant_pad_nd(x_BZND, {0, missing}) : aligned(x_BZND);
}

at::Tensor trimmed(const at::Tensor& x_BZND, int64_t head_dim) {
  return x_BZND.size(3) == head_dim ? x_BZND : x_BZND.narrow(3, 0, head_dim).contiguous();
}

float softmax_scale(const at::Tensor& q_BZND) {
  return float(1 / std::sqrt(double(q_BZND.size(3))));
}

class NativeBackend final : public SparseBackend {
 public:
  Selection select(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                   const at::Tensor& v_BZND) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor q = prepared(q_BZND), k = prepared(k_BZND), v = prepared(v_BZND);
    return choose(problem, Call(problem, q), q, k, v, c10::cuda::getCurrentCUDAStream());
  }

  SparseForward attend(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                       const at::Tensor& v_BZND, const Selection& selection) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor q = prepared(q_BZND);
    const Call call(problem, q);
    const bool copied = !call.partition.identity;
    const at::Tensor k_blocks = copied ? selection.at(5) : prepared(k_BZND);
    const at::Tensor v_blocks = copied ? selection.at(6) : prepared(v_BZND);

    const kernels::Shape& s = call.shape;
    const int64_t per_head = kernels::slots_per_head_capacity(s);
    const int64_t budget = kPartialBudgetBytes / (2 * s.head_dim + 4);
    const int64_t slots = std::max(per_head, std::min(budget, per_head * s.batch * s.heads));
    const at::Tensor out = at::empty(q.sizes(), q.options());
    const at::Tensor lse_BNZ = at::empty({s.batch, s.heads, s.tokens()}, q.options().dtype(at::kFloat));
    const at::Tensor scratch = bytes(kernels::forward_workspace_bytes(s, slots), q);
    const Lists lists(selection);
    check_launch(kernels::forward({s, call.partition, lists.views(), view(q), view(k_blocks), view(v_blocks), view(out),
                                   lse_BNZ.data_ptr<float>(), softmax_scale(q_BZND), slots, scratch.data_ptr()},
                                  c10::cuda::getCurrentCUDAStream()),
                 "forward");
    return {trimmed(out, q_BZND.size(3)), lse_BNZ, attended_pairs(problem, call, lists), selection};
  }

  SparseGradients backward(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                           const at::Tensor& v_BZND, const SparseForward& saved,
                           const at::Tensor& dout_BZND) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor q = prepared(q_BZND), out = prepared(saved.out_BZND), dout = prepared(dout_BZND);
    const Call call(problem, q);
    const bool copied = !call.partition.identity;
    const at::Tensor k_blocks = copied ? saved.selection.at(5) : prepared(k_BZND);
    const at::Tensor v_blocks = copied ? saved.selection.at(6) : prepared(v_BZND);
    const bool deterministic = at::globalContext().deterministicAlgorithms();
    const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(q.sizes(), q.options()),
                     dv = at::empty(q.sizes(), q.options());
    const at::Tensor scratch = bytes(kernels::backward_workspace_bytes(call.shape, deterministic), q);
    kernels::BackwardArgs args;
    args.shape = call.shape;
    args.partition = call.partition;
    args.lists = Lists(saved.selection).views();
    args.q = view(q);
    args.out = view(out);
    args.dout = view(dout);
    args.k_blocks = view(k_blocks);
    args.v_blocks = view(v_blocks);
    args.lse = saved.lse_BNZ.const_data_ptr<float>();
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

  at::Tensor mask_BNCS(const SparseProblem& problem, const std::vector<at::Tensor>& selection) const override {
    const at::Tensor bit = at::arange(32, selection[0].options());
    const at::Tensor bits = at::bitwise_and(at::bitwise_right_shift(selection[0].unsqueeze(-1), bit), 1);
    return bits.flatten(3).slice(2, 0, problem.tables->blocks).slice(3, 0, problem.tables->tokens).to(at::kBool);
  }
};

}  // namespace

std::string unsupported_reason(const at::Tensor& q_BZND) {
  if (!q_BZND.is_cuda()) return "tensors on the CPU";
  if (q_BZND.scalar_type() != at::kBFloat16) return fmt::format("{} tensors", c10::toString(q_BZND.scalar_type()));
  if (q_BZND.size(3) > 128) return fmt::format("a head size of {}", q_BZND.size(3));
  if (kernels::kernel_family(q_BZND.device().index()) == 0) {
    cudaDeviceProp properties{};
    cudaGetDeviceProperties(&properties, q_BZND.device().index());
    return fmt::format("a {} (compute capability {}.{})", properties.name, properties.major, properties.minor);
  }
  return "";
}

const SparseBackend& backend() {
  static const NativeBackend instance;
  return instance;
}

}  // namespace vmoba::attention::native
