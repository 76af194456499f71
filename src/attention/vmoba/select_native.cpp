#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/native/call.h"
#include "attention/native/tile_call.h"
#include "attention/vmoba/vmoba.h"

namespace vmoba::attention {
namespace {

using native::Call;

struct Gates {
  at::Tensor gate_BNCS, range_BN2;  // without a range, the selection finds it
};

// Stage 1. Also fills the copies of `selection`, where it has any.
Gates gate(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Selection& selection,
           cudaStream_t stream) {
  const kernels::Shape& s = call.shape;
  const auto f32 = q.options().dtype(at::kFloat);
  Gates out{at::empty({s.batch, s.heads, s.blocks, s.video_tokens}, f32), at::empty({s.batch, s.heads, 2}, f32)};
  const at::Tensor kbar = at::empty({s.batch, s.heads, s.blocks, s.head_dim}, f32);
  const at::Tensor scratch = native::bytes(kernels::gate_workspace_bytes(s), q);
  kernels::GateArgs args;
  args.shape = s;
  args.partition = call.partition;
  args.q = native::view(q);
  args.k = native::view(k);
  args.v = native::view(v);
  args.kbar = kbar.data_ptr<float>();
  args.gate = out.gate_BNCS.data_ptr<float>();
  args.range = out.range_BN2.data_ptr<float>();
  args.workspace = scratch.data_ptr();
  if (!call.partition.identity) {
    const auto head_major = [&] { return at::empty({s.batch, s.heads, s.tokens(), s.head_dim}, q.options()); };
    const at::Tensor k_copy = head_major(), v_copy = head_major();
    args.k_blocks = k_copy.data_ptr();
    args.v_blocks = v_copy.data_ptr();
    selection.k_blocks_BZND = k_copy.transpose(1, 2);
    selection.v_blocks_BZND = v_copy.transpose(1, 2);
  }
  native::check_launch(kernels::gate(args, stream), "gate");
  return out;
}

kernels::SelectParams select_params(const VmobaRule& rule, int64_t blocks) {
  kernels::SelectParams out;
  out.mode = rule.select == SelectMode::kThreshold ? kernels::SelectMode::kThreshold : kernels::SelectMode::kTopk;
  switch (rule.pool) {
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
  out.tau = rule.tau;
  const double wanted = rule.blocks_per_query(blocks);
  out.topk = int32_t(wanted);
  if (rule.pool != Pool::kQueryHead) out.topk_part = wanted - double(out.topk);
  return out;
}

void launch_select(const Call& call, const kernels::SelectParams& params, const Gates& gates, const at::Tensor& mask,
                   cudaStream_t stream) {
  const at::Tensor scratch = native::bytes(kernels::select_workspace_bytes(call.shape, params), mask);
  kernels::SelectArgs args;
  args.shape = call.shape;
  args.partition = call.partition;
  args.params = params;
  args.gate = gates.gate_BNCS.const_data_ptr<float>();
  args.range = gates.range_BN2.defined() ? gates.range_BN2.const_data_ptr<float>() : nullptr;
  args.lists.mask = static_cast<uint32_t*>(mask.data_ptr());
  args.workspace = scratch.data_ptr();
  native::check_launch(kernels::select(args, stream), "select");
}

// Top-k of every tile and head by itself. `one_more_NU`: HashedChoices.
at::Tensor topk_of_tiles_BNUC(const native::TileCall& call, const VmobaRule& rule, const at::Tensor& gate_BNUC,
                              const at::Tensor& one_more_NU) {
  const at::Tensor mask_BNUC = at::empty(gate_BNUC.sizes(), gate_BNUC.options().dtype(at::kByte));
  kernels::TileTopkArgs args;
  args.shape = call.shape;
  args.partition = call.partition;
  args.gate = gate_BNUC.const_data_ptr<float>();
  args.topk = int32_t(std::min(rule.blocks_per_query(call.shape.blocks), double(call.shape.blocks)));
  const at::Tensor one_more = one_more_NU.defined() ? one_more_NU.to(at::kByte).contiguous() : at::Tensor();
  if (one_more.defined()) args.one_more = one_more.const_data_ptr<uint8_t>();
  args.mask = mask_BNUC.data_ptr<uint8_t>();
  native::check_launch(kernels::tile_topk(args, c10::cuda::getCurrentCUDAStream()), "select");
  return mask_BNUC;
}

// Logarithms of the shares [B, N, U, C] of tiles' mean queries, some heads at a time. `k_BNCD`: means of whole blocks.
// A share has no gradient, so that its means may be those of the bf16 keys.
at::Tensor tile_shares_BNUC(const native::TileCall& call, const BlockProblem& problem, const at::Tensor& k_BZND,
                            const at::Tensor& q_BNUD, const at::Tensor& k_BNCD, double scale) {
  constexpr int64_t kScores = int64_t(1) << 26;
  const auto means = sub_blocks(problem, vmoba_rule(problem.layer).gate_block, q_BNUD.device());
  at::Tensor k_BNMD = k_BNCD;
  if (!means->whole()) {
    const at::Tensor token_of_S = problem.tables->token_of_S.index_select(0, means->position_S);
    k_BNMD = native::run_means(call, k_BZND, token_of_S, means->start_M1);
  }
  const int64_t batch = q_BNUD.size(0), heads = q_BNUD.size(1), tiles = q_BNUD.size(2);
  const at::Tensor log_M = means->tokens_M.log().to(at::kFloat);
  const at::Tensor q_PUD = q_BNUD.flatten(0, 1), k_PDM = k_BNMD.flatten(0, 1).transpose(1, 2);
  at::Tensor out_PUC = at::empty({batch * heads, tiles, problem.tables->blocks}, q_BNUD.options());
  const int64_t step = std::clamp<int64_t>(kScores / (tiles * means->count()), 1, batch * heads);
  for (int64_t begin = 0; begin < batch * heads; begin += step) {
    const auto part = [&](const at::Tensor& x) { return x.slice(0, begin, begin + step); };
    part(out_PUC).copy_(log_shares(*means, at::baddbmm(log_M, part(q_PUD), part(k_PDM), 1, scale)));
  }
  return out_PUC.view({batch, heads, tiles, -1});
}

// Means of sub-blocks have no kernel: remainder_branch() computes those.
bool whole_block_means(const VmobaRule& rule) {
  return rule.remainder == Remainder::kOneSoftmax && rule.remainder_block == std::array<int64_t, 3>{0, 0, 0};
}

BlockMeans block_means(const BlockProblem& problem, const native::RowMeans& means, at::TensorList learnt) {
  const at::Tensor& k_BNCD = means.k_rounded_BNCD;
  at::Tensor bias_NC = problem.tables->block_tokens_C.log().to(at::kFloat).expand({k_BNCD.size(1), -1});
  if (!learnt.empty()) bias_NC = bias_NC + learnt[0].to(at::kFloat).unsqueeze(1);
  return {k_BNCD, means.v_rounded_BNCD, bias_NC.expand({k_BNCD.size(0), -1, -1}).contiguous()};
}

// Tiles are few: their gates are a product of means that a kernel makes. Selections other than the top-k of each tile
// are tensor operations. `scale`: of the softmax.
Selection select_tiles(const BlockProblem& problem, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       double scale, at::TensorList learnt) {
  const native::TileCall call(problem, q);
  Selection out;
  const VmobaRule& rule = vmoba_rule(problem.layer);
  const bool remainder = whole_block_means(rule);
  const native::RowMeans means = native::permute_rows(problem, call, q, k, v, remainder, out);
  const at::Tensor &q_BNUD = means.q_BNUD, &k_BNCD = means.k_BNCD;
  const Choosers who = choosers(problem);
  const HashedChoices hashed = hashed_choices(problem, who, q_BNUD.size(1));
  const bool shares = rule.score == Score::kShare;
  if (rule.select == SelectMode::kTopk && rule.pool == Pool::kQueryHead) {
    const at::Tensor gate_BNUC =
        shares ? tile_shares_BNUC(call, problem, k, q_BNUD, k_BNCD, scale) : at::matmul(q_BNUD, k_BNCD.transpose(2, 3));
    out.mask.tiles_BNUC = topk_of_tiles_BNUC(call, rule, gate_BNUC, hashed.one_more_NU);
  } else {
    at::Tensor gate_BNCU = shares ? tile_shares_BNUC(call, problem, k, q_BNUD, k_BNCD, scale).transpose(2, 3)
                                  : at::matmul(k_BNCD, q_BNUD.transpose(2, 3));
    if (hashed.gate_NCU.defined()) gate_BNCU = hashed.gate_NCU.expand_as(gate_BNCU);
    const at::Tensor mask_BNCU = select_samples(who, rule, gate_BNCU, hashed.one_more_NU);
    out.mask.tiles_BNUC = mask_BNCU.transpose(2, 3).to(at::kByte).contiguous();
  }
  leave_to_means(problem, out.mask);
  if (remainder) out.means = block_means(problem, means, learnt);
  return out;
}

// Of selections of single queries.
bool has_kernel(const VmobaRule& rule) {
  const bool normalised = rule.score == Score::kGate || rule.select != SelectMode::kThreshold;
  return normalised && rule.least_blocks == 1;
}

BlockMask select_without_kernel(const BlockProblem& problem, const at::Tensor& gate_BNCS, const HashedChoices& hashed) {
  std::vector<at::Tensor> masks;
  for (int64_t b = 0; b < gate_BNCS.size(0); ++b)
    masks.push_back(select(choosers(problem), vmoba_rule(problem.layer),
                           hashed.gate_NCU.defined() ? hashed.gate_NCU : gate_BNCS[b], hashed.one_more_NU));
  return BlockMask::of(at::stack(masks), problem.text_tokens);
}

}  // namespace

Selection vmoba_select_native(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                              const at::Tensor& v_BZND, at::TensorList learnt) {
  const c10::cuda::CUDAGuard guard(q_BZND.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor q = native::prepared(q_BZND), k = native::prepared(k_BZND), v = native::prepared(v_BZND);
  if (problem.tiles != nullptr) return select_tiles(problem, q, k, v, 1 / std::sqrt(double(q_BZND.size(3))), learnt);
  const Call call(problem, q);
  Selection out;
  out.mask.words_BNEW = call.empty_mask(q);
  Gates gates = gate(call, q, k, v, out, stream);
  const VmobaRule& rule = vmoba_rule(problem.layer);
  const HashedChoices hashed = hashed_choices(problem, choosers(problem), q.size(2));
  if (rule.score == Score::kShare) {
    for (int64_t b = 0; b < q.size(0); ++b) log_shares_into(problem, q_BZND[b], k_BZND[b], gates.gate_BNCS[b]);
    gates.range_BN2 = at::Tensor();
  }
  if (!has_kernel(rule)) {
    out.mask = select_without_kernel(problem, gates.gate_BNCS, hashed);
    leave_to_means(problem, out.mask);
    return out;
  }
  if (hashed.gate_NCU.defined()) {
    gates.gate_BNCS.copy_(hashed.gate_NCU.expand_as(gates.gate_BNCS));
    gates.range_BN2 = at::Tensor();
  }
  kernels::SelectParams params = select_params(rule, problem.tables->blocks);
  launch_select(call, params, gates, out.mask.words_BNEW, stream);
  if (hashed.one_more_NU.defined()) {  // top-k of one more holds that of fewer
    at::Tensor more_BNEW = call.empty_mask(q);
    params.topk += 1;
    launch_select(call, params, gates, more_BNEW, stream);
    const at::Tensor rows_1NEW = BlockMask::of(hashed.one_more_NU.view({1, q.size(2), 1, -1}), 0).words_BNEW;
    const int64_t words = rows_1NEW.size(3);  // of text there may be more, which both have
    out.mask.words_BNEW.slice(3, 0, words).bitwise_or_(more_BNEW.slice(3, 0, words).bitwise_and_(rows_1NEW));
  }
  leave_to_means(problem, out.mask);
  return out;
}

}  // namespace vmoba::attention
