// Partition of a video grid into blocks (docs/attention.md, "Blocks"): which token lies in which block, and the
// permuted order in which blocks are contiguous. Any grid works; sizes of blocks differ by at most one per dimension.
//
// Tables depend on (grid, chunk, device) only. partition_tables() keeps a bounded cache of them and returns shared
// ownership; its tensors are constant and must not be written. Safe to call from several threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/attention.h"

namespace vmoba::attention {

// Chunk (ct, ch, cw) of a partition; 0 stands for the whole dimension.
using Chunk = std::array<int64_t, 3>;

// Shape letters: S tokens, C blocks.
struct PartitionTables {
  int64_t tokens = 0;
  int64_t blocks = 0;
  int64_t max_block_tokens = 0;
  bool identity = false;             // the permuted order is the original one
  std::vector<int64_t> block_start;  // [C+1] on the host: first permuted position of each block, then S
  at::Tensor token_of_S;             // int32: permuted position -> original token
  at::Tensor block_of_S;             // int32: permuted position -> block
  at::Tensor block_start_C1;         // int32: block_start on the device
  at::Tensor block_tokens_C;         // fp64: tokens of each block
};

// A chunk of one dimension, resolved.
int64_t whole_if_zero(int64_t chunk, int64_t length);

// Sizes of the ceil(length / chunk) blocks of one dimension: they differ by at most one, the larger ones first.
std::vector<int64_t> split_dimension(int64_t length, int64_t chunk);

// Blocks of `grid`; throws Error(kInput) where grid or chunk has no tokens, negative numbers or 2^31 tokens and more.
int64_t partition_block_count(const Grid& grid, const Chunk& chunk);

// Permuted position -> original token of video and, behind it, text: int64 [S + text_tokens].
at::Tensor token_order_Z(const PartitionTables& tables, int64_t text_tokens);

std::shared_ptr<const PartitionTables> partition_tables(const Grid& grid, const Chunk& chunk, at::Device device);

}  // namespace vmoba::attention
