#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "attention/native/native.h"
#include "attention/native/tile_call.h"
#include "core/check.h"

namespace vmoba::attention::native {
namespace {

kernels::TileLists views(const Selection& selection, const TileHeads& heads) {
  const PieceLists& lists = selection.pieces;
  kernels::TileLists out;
  out.keys = heads.of<uint16_t>(lists.keys_BNUP);
  out.key_count = heads.of<int32_t>(lists.key_count_BNU);
  out.rows = heads.of<uint16_t>(lists.rows_BNCP);
  out.row_count = heads.of<int32_t>(lists.row_count_BNC);
  if (lists.key_tokens_BNU.defined()) out.key_tokens = heads.of<int32_t>(lists.key_tokens_BNU);
  out.row_tokens = heads.of<int32_t>(selection.lists.length_BNE);
  out.next = static_cast<uint32_t*>(lists.next_2.data_ptr());
  out.mask = heads.of<uint8_t>(selection.mask.tiles_BNUC);
  return out;
}

kernels::TileMeans means_of(const Selection& selection, const TileHeads& heads) {
  const BlockMeans& means = selection.means;
  if (!means.keys_BNCD.defined()) return {};
  return {heads.of<uint16_t>(means.keys_BNCD), heads.of<uint16_t>(means.values_BNCD), heads.of<float>(means.bias_BNC)};
}

// What forward and backward have in common.
template <typename Arguments>
Arguments arguments(const TileCall& call, const TileWave& wave, const Selection& selection, const at::Tensor& q_BZND) {
  Arguments args;
  args.shape = wave.shape;
  args.partition = call.partition;
  VMOBA_CHECK(
      selection.pieces.keys_BNUP.size(3) == call.shape.key_pieces(),
      "attention: expected lists of {} pieces of keys, found {}; do not change torch's deterministic mode between "
      "forward and backward",
      call.shape.key_pieces(), selection.pieces.keys_BNUP.size(3));
  const bool kept = !wave.rows_3BNZD.defined();
  args.lists = views(selection, wave);
  args.q = kept ? selection.q_blocks_BZND.const_data_ptr() : wave.rows_3BNZD[0].const_data_ptr();
  args.k = kept ? selection.k_blocks_BZND.const_data_ptr() : wave.rows_3BNZD[1].const_data_ptr();
  args.v = kept ? selection.v_blocks_BZND.const_data_ptr() : wave.rows_3BNZD[2].const_data_ptr();
  args.means = means_of(selection, wave);
  args.scale = softmax_scale(q_BZND);
  return args;
}

class TileEngine final : public BlockEngine {
 public:
  bool native() const override { return true; }
  bool takes_means() const override { return true; }

  Selection index(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                  const at::Tensor& v_BZND, Selection selection) const override {
    const c10::cuda::CUDAGuard guard(k_BZND.device());
    const TileCall call(problem, k_BZND);
    if (call.keeps_copies() && !selection.q_blocks_BZND.defined())
      permute_rows(problem, call, prepared(q_BZND), prepared(k_BZND), prepared(v_BZND), /*rounded=*/false, selection);
    const kernels::TileShape& s = call.shape;
    const at::TensorOptions i32 = k_BZND.options().dtype(at::kInt), i16 = i32.dtype(at::kShort);
    selection.pieces.keys_BNUP = at::empty({s.batch, s.heads, s.tiles, s.key_pieces()}, i16);
    selection.pieces.key_count_BNU = at::empty({s.batch, s.heads, s.tiles}, i32);
    if (s.strip_rows > 0) selection.pieces.key_tokens_BNU = at::empty({s.batch, s.heads, s.tiles}, i32);
    selection.pieces.rows_BNCP = at::empty({s.batch, s.heads, s.blocks, s.pieces()}, i16);
    selection.pieces.row_count_BNC = at::empty({s.batch, s.heads, s.blocks}, i32);
    selection.pieces.next_2 = at::empty({2}, i32);
    selection.lists.length_BNE = at::empty({s.batch, s.heads, s.key_blocks()}, i32);
    check_launch(kernels::tile_index(s, call.partition, views(selection, {s}), c10::cuda::getCurrentCUDAStream()),
                 "index");
    return selection;
  }

  Attended attend(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                  const at::Tensor& v_BZND, const Selection& selection) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor q = prepared(q_BZND);
    const TileCall call(problem, q);
    const at::Tensor out = at::empty(q.sizes(), q.options());
    Attended attended{{}, at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat))};
    for_each_wave(call, selection, q_BZND, k_BZND, v_BZND, [&](const TileWave& wave) {
      auto args = arguments<kernels::TileForwardArgs>(call, wave, selection, q_BZND);
      args.out = wave.view_of(out);
      args.lse = wave.of<float>(attended.lse_BNZ);
      check_launch(kernels::tile_forward(args, c10::cuda::getCurrentCUDAStream()), "forward");
    });
    attended.out_BZND = trimmed(out, q_BZND.size(3));
    return attended;
  }

  BlockGradients backward(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                          const at::Tensor& v_BZND, const Selection& selection, const Attended& attended,
                          const at::Tensor& dout_BZND) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor out = prepared(attended.out_BZND), dout = prepared(dout_BZND);
    const TileCall call(problem, out);
    const auto like_out = [&] { return at::empty(out.sizes(), out.options()); };
    const at::Tensor dq = like_out(), dk = like_out(), dv = like_out();
    const bool means = selection.means.keys_BNCD.defined();
    at::Tensor dbias_BNP, scratch;
    if (means)
      dbias_BNP = at::empty({out.size(0), out.size(2), call.shape.mean_pieces()}, out.options().dtype(at::kFloat));
    for_each_wave(call, selection, q_BZND, k_BZND, v_BZND, [&](const TileWave& wave) {
      reserve(scratch, kernels::tile_backward_workspace_bytes(wave.shape, means), out);
      auto args = arguments<kernels::TileBackwardArgs>(call, wave, selection, q_BZND);
      args.out = wave.view_of(out);
      args.dout = wave.view_of(dout);
      args.lse = wave.of<float>(attended.lse_BNZ);
      args.dq = wave.view_of(dq);
      args.dk = wave.view_of(dk);
      args.dv = wave.view_of(dv);
      if (means) args.dbias = wave.of<float>(dbias_BNP);
      args.workspace = scratch.data_ptr();
      check_launch(kernels::tile_backward(args, c10::cuda::getCurrentCUDAStream()), "backward");
    });
    const int64_t head_dim = q_BZND.size(3);
    BlockGradients d{trimmed(dq, head_dim), trimmed(dk, head_dim), trimmed(dv, head_dim)};
    if (means) d.dlearnt.push_back(dbias_BNP.sum(at::IntArrayRef{0, 2}));
    return d;
  }
};

}  // namespace

const BlockEngine& tile_engine() {
  static const TileEngine instance;
  return instance;
}

}  // namespace vmoba::attention::native
