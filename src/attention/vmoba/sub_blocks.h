// Means of keys finer than blocks: every block cut into sub-blocks, as a partition cuts the grid.
//
// Tables depend on (grid, chunk, cut, device) only. sub_blocks() keeps a bounded cache of them and returns shared
// ownership; its tensors are constant. Safe to call from several threads.
//
// Shape letters as in vmoba.h; M sub-blocks, those of one block one after the other, K the most that a block has.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <memory>
#include <vector>

#include "attention/block/engine.h"

namespace vmoba::attention {

struct SubBlocks {
  at::Tensor mean_of_S;    // int64: permuted position -> sub-block
  at::Tensor block_of_M;   // int64
  at::Tensor tokens_M;     // fp64
  at::Tensor position_S;   // int64: permuted positions, sub-block by sub-block
  at::Tensor start_M1;     // int32: first of each in position_S, then S
  at::Tensor of_block_CK;  // int64: the sub-blocks of each block; M where it has fewer than K

  int64_t count() const { return tokens_M.size(0); }
  // Whether every block is one sub-block.
  bool whole() const { return of_block_CK.size(1) == 1; }
  // Means of the sub-blocks, of permuted rows [S, D]: sums in fp64, result in the type of `x_SD`.
  at::Tensor means_MD(const at::Tensor& x_SD) const;
};

// `cut`: chunk inside each block, 0 stands for the block's whole extent.
std::shared_ptr<const SubBlocks> sub_blocks(const BlockProblem& problem, const Chunk& cut, at::Device device);
// How many there are, without tables.
int64_t sub_block_count(const Grid& grid, const Chunk& chunk, const Chunk& cut);

}  // namespace vmoba::attention
