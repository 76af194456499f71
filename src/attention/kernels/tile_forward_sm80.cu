// Forward of attention by query tiles with mma.sync and cp.async, for sm_80 and its successors without kernels of their
// own: a block of threads holds one piece of rows in registers while the keys that its tile attends, and then the means
// of the blocks that it does not, go by. Half of the shared memory that every such GPU has, so that two fit.
#include "attention/kernels/tile_sm80.cuh"

namespace vmoba::kernels {
namespace {

using namespace tiles_sm80;

// Normalised rows in the original order, and their log-sum-exps.
template <int D>
__device__ __forceinline__ void store_rows(const TileForwardArgs& args, int head, const Piece& own,
                                           const am::WarpRows<D>& rows, float scale_log2) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = am::row_sum(rows, r), inverse = 1.f / sum;
    const int row = warp_row() + lane / 4 + r * 8;
    if (row >= own.rows) continue;
    const int token = tile_token(args.shape, args.partition, own.begin + row);
    uint32_t* out = reinterpret_cast<uint32_t*>(tile_row(args.out, args.shape, head, token));
#pragma unroll
    for (int d = 0; d < D / 8; ++d)
      out[d * 4 + lane % 4] = hopper::pack_bf16(rows.output[d][2 * r] * inverse, rows.output[d][2 * r + 1] * inverse);
    if (lane % 4 == 0) {
      args.lse[int64_t(head) * args.shape.tokens() + token] =
          fmaf(rows.maximum[r], scale_log2, log2f(sum)) * 0.6931471805599453f;
    }
  }
}

// Pieces of text, which attend every key, come first.
template <int D>
__global__ void __launch_bounds__(kThreads, D == 64 ? 3 : 2)
    forward_kernel(const __grid_constant__ TileForwardArgs args) {
  using Walk = KeyWalk<D, /*kValuesFirst=*/false, TileForwardArgs>;
  extern __shared__ __align__(1024) char shared_bytes[];
  const int pieces = args.shape.pieces();
  const int head = int(blockIdx.x) / pieces, piece = pieces - 1 - int(blockIdx.x) % pieces;
  const Piece own = piece_at(args.partition, piece);
  const bool has_rows = warp_row() < own.rows;
  const float scale_log2 = args.scale * am::kLog2e;
  am::WarpRows<D> rows = {};
  rows.maximum[0] = rows.maximum[1] = -INFINITY;
  load_operand<D>(rows.query, row_at<D>(args.q, int64_t(head) * args.shape.tokens() + own.begin), own.rows);
  Walk(args, *reinterpret_cast<typename Walk::Storage*>(shared_bytes), head, piece)
      .run(
          [&](uint32_t keys, const StepKeys& step, const float* bias) {
            if (!has_rows) return;
            am::multiply_rows<D, kPieceRows, kPieceRows>(rows.scores, keys, 0, step.rows, rows.query);
            if (step.mean()) add_bias(rows.scores, bias);
            am::mask_scores(rows.scores, step.rows);
            am::softmax(rows, scale_log2);
          },
          [&](uint32_t values, const StepKeys& step, const float*) {
            if (has_rows) am::add_values(rows, values, step.rows);
          });
  if (has_rows) store_rows(args, head, own, rows, scale_log2);
}

template <int D>
cudaError_t launch(const TileForwardArgs& args, cudaStream_t stream) {
  constexpr int kSharedBytes = sizeof(typename KeyWalk<D, false, TileForwardArgs>::Storage);
  static_assert(2 * (kSharedBytes + 1024) <= 100 * 1024);
  const auto kernel = forward_kernel<D>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks = int64_t(args.shape.batch) * args.shape.heads * args.shape.pieces();
  kernel<<<unsigned(blocks), kThreads, kSharedBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t tile_forward_sm80(const TileForwardArgs& args, cudaStream_t stream) {
  if (!shape_taken(args.shape)) return cudaErrorInvalidValue;
  return args.shape.head_dim == 64 ? launch<64>(args, stream) : launch<128>(args, stream);
}

}  // namespace vmoba::kernels
