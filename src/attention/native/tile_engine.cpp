#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "attention/native/native.h"
#include "attention/native/tile_call.h"
#include "core/check.h"

namespace vmoba::attention::native {
namespace {

kernels::TileLists views(const Selection& selection) {
  const PieceLists& lists = selection.pieces;
  kernels::TileLists out;
  out.keys = static_cast<uint16_t*>(lists.keys_BNUP.data_ptr());
  out.key_count = lists.key_count_BNU.data_ptr<int32_t>();
  out.rows = static_cast<uint16_t*>(lists.rows_BNCP.data_ptr());
  out.row_count = lists.row_count_BNC.data_ptr<int32_t>();
  out.row_tokens = selection.lists.length_BNE.data_ptr<int32_t>();
  out.next = static_cast<uint32_t*>(lists.next_2.data_ptr());
  out.mask = selection.mask.tiles_BNUC.const_data_ptr<uint8_t>();
  return out;
}

kernels::TileMeans means_of(const Selection& selection) {
  const BlockMeans& means = selection.means;
  if (!means.keys_BNCD.defined()) return {};
  return {means.keys_BNCD.const_data_ptr(), means.values_BNCD.const_data_ptr(), means.bias_BNC.const_data_ptr<float>()};
}

// What forward and backward have in common.
template <typename Arguments>
Arguments arguments(const TileCall& call, const Selection& selection, const at::Tensor& q_BZND) {
  Arguments args;
  args.shape = call.shape;
  args.partition = call.partition;
  VMOBA_CHECK(
      selection.pieces.keys_BNUP.size(3) == call.shape.key_pieces(),
      "attention: expected lists of {} pieces of keys, found {}; do not change torch's deterministic mode between "
      "forward and backward",
      call.shape.key_pieces(), selection.pieces.keys_BNUP.size(3));
  args.lists = views(selection);
  args.q = selection.q_blocks_BZND.const_data_ptr();
  args.k = selection.k_blocks_BZND.const_data_ptr();
  args.v = selection.v_blocks_BZND.const_data_ptr();
  args.means = means_of(selection);
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
    if (!selection.q_blocks_BZND.defined())
      permute_rows(problem, call, prepared(q_BZND), prepared(k_BZND), prepared(v_BZND), /*rounded=*/false, selection);
    const kernels::TileShape& s = call.shape;
    const at::TensorOptions i32 = k_BZND.options().dtype(at::kInt), i16 = i32.dtype(at::kShort);
    selection.pieces.keys_BNUP = at::empty({s.batch, s.heads, s.tiles, s.key_pieces()}, i16);
    selection.pieces.key_count_BNU = at::empty({s.batch, s.heads, s.tiles}, i32);
    selection.pieces.rows_BNCP = at::empty({s.batch, s.heads, s.blocks, s.pieces()}, i16);
    selection.pieces.row_count_BNC = at::empty({s.batch, s.heads, s.blocks}, i32);
    selection.pieces.next_2 = at::empty({2}, i32);
    selection.lists.length_BNE = at::empty({s.batch, s.heads, s.key_blocks()}, i32);
    check_launch(kernels::tile_index(s, call.partition, views(selection), c10::cuda::getCurrentCUDAStream()), "index");
    return selection;
  }

  Attended attend(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor&, const at::Tensor&,
                  const Selection& selection) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor q = prepared(q_BZND);
    const TileCall call(problem, q);
    const at::Tensor out = at::empty(q.sizes(), q.options());
    Attended attended{{}, at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat))};
    auto args = arguments<kernels::TileForwardArgs>(call, selection, q_BZND);
    args.out = view(out);
    args.lse = attended.lse_BNZ.data_ptr<float>();
    check_launch(kernels::tile_forward(args, c10::cuda::getCurrentCUDAStream()), "forward");
    attended.out_BZND = trimmed(out, q_BZND.size(3));
    return attended;
  }

  BlockGradients backward(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor&, const at::Tensor&,
                          const Selection& selection, const Attended& attended,
                          const at::Tensor& dout_BZND) const override {
    const c10::cuda::CUDAGuard guard(q_BZND.device());
    const at::Tensor out = prepared(attended.out_BZND), dout = prepared(dout_BZND);
    const TileCall call(problem, out);
    const auto like_out = [&] { return at::empty(out.sizes(), out.options()); };
    const at::Tensor dq = like_out(), dk = like_out(), dv = like_out();
    auto args = arguments<kernels::TileBackwardArgs>(call, selection, q_BZND);
    const bool means = args.means.keys != nullptr;
    const at::Tensor scratch = bytes(kernels::tile_backward_workspace_bytes(call.shape, means), out);
    at::Tensor dbias_BNP;
    if (means) {
      dbias_BNP = at::empty({out.size(0), out.size(2), call.shape.mean_pieces()}, out.options().dtype(at::kFloat));
      args.dbias = dbias_BNP.data_ptr<float>();
    }
    args.out = view(out);
    args.dout = view(dout);
    args.lse = attended.lse_BNZ.const_data_ptr<float>();
    args.dq = view(dq);
    args.dk = view(dk);
    args.dv = view(dv);
    args.workspace = scratch.data_ptr();
    check_launch(kernels::tile_backward(args, c10::cuda::getCurrentCUDAStream()), "backward");
    const int64_t head_dim = q_BZND.size(3);
    BlockGradients d{trimmed(dq, head_dim), trimmed(dk, head_dim), trimmed(dv, head_dim)};
    if (means) d.dlearnt.push_back(dbias_BNP.sum(at::IntArrayRef{0, 2}));
    return d;
  }
};

}  // namespace

bool takes_tiles(const at::Tensor& q_BZND) {
  return kernels::kernel_family(q_BZND.device().index()) == 90;
}

const BlockEngine& tile_engine() {
  static const TileEngine instance;
  return instance;
}

}  // namespace vmoba::attention::native
