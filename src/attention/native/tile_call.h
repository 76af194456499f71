// Shape and tables of a call of the kernels of tiles.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "attention/kernels/tiles.h"
#include "attention/native/call.h"

namespace vmoba::attention::native {

// Device tables of a partition cut into pieces (kernels/tiles.h).
struct PieceTables {
  int64_t video_pieces = 0;
  int64_t row_pairs = 0, key_pairs = 0;           // 0: too few pieces have another of their tile or block
  at::Tensor begin_P1, block_P, tile_P, block_U;  // int32
  at::Tensor row_pair_1, key_pair_1;              // int32, and the end of all; undefined for family 80
  int64_t long_key_pieces = 0;                    // of video, of kLongPieceRows; 0: they do not fit better
  at::Tensor key_begin_P1, key_block_P;           // those
  bool packs = false;                             // TileShape::packed pays
  int64_t strip_rows = 0, video_strips = 0;       // 0: strips are not better than pieces
  at::Tensor strip_begin_S1, strip_block_S;       // those
};

struct TileCall {
  kernels::TileShape shape;
  kernels::TilePartition partition;
  int32_t wave_heads = 0;  // see tile_memory.h

  // `x`: prepared, or any tensor of the call's shape. Problems of one geometry share their tables, which are kept. In
  // torch's deterministic mode keys are not handled in pairs.
  TileCall(const BlockProblem& problem, const at::Tensor& x_BZND);

  bool keeps_copies() const { return wave_heads == shape.heads; }

 private:
  std::shared_ptr<const PieceTables> pieces_;
};

// Means of runs of permuted rows: of q those of tiles, of k and v those of blocks.
struct RowMeans {
  at::Tensor q_BNUD, k_BNCD;                  // fp32
  at::Tensor k_rounded_BNCD, v_rounded_BNCD;  // bf16; where they are wanted
};

// Means of prepared q, k and v; where the call keeps copies, also those, in permuted order, head by head, into
// `selection`.
RowMeans permute_rows(const BlockProblem& problem, const TileCall& call, const at::Tensor& q_BZND,
                      const at::Tensor& k_BZND, const at::Tensor& v_BZND, bool rounded, Selection& selection);

using TileHeads = Heads<kernels::TileShape>;

// Heads that go through the kernels together: some of one sample with copies of their own, or all of all samples.
struct TileWave : TileHeads {
  at::Tensor rows_3BNZD;  // q, k and v in permuted order; undefined where `selection` has them
};

// Calls `function` with one wave after the other.
void for_each_wave(const TileCall& call, const Selection& selection, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                   const at::Tensor& v_BZND, const std::function<void(const TileWave&)>& function);

// fp32 means [B, N, R, D] of runs of rows of a prepared x in another order: token_of_S and start_R1 are int32.
at::Tensor run_means(const TileCall& call, const at::Tensor& x_BZND, const at::Tensor& token_of_S,
                     const at::Tensor& start_R1);

}  // namespace vmoba::attention::native
