// Which blocks of keys each query attends: what a method gives the engine, and the layout that the kernels read.
//
// Shape letters: B samples, S video tokens, X text tokens, Z = S + X, N heads, C blocks, E = C, or C + 1 where there
// is text, W = ceil(Z / 32) words, U tiles. Positions are permuted ones: video tokens in block order, text behind.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vmoba::attention {

// Either of the two, or both.
struct BlockMask {
  // int32: bit p % 32 of word p / 32 says that position p attends block e. Text is block C, which every position
  // attends; text positions attend every block. Bits behind Z are 0.
  at::Tensor words_BNEW = {};
  // uint8, 1 where tile u of queries attends block c: [B, N, U, C], without what holds for text. Of layers whose tiles
  // choose (Method::query_tile).
  at::Tensor tiles_BNUC = {};

  // From bool [B, N, C, S], true where a token attends a block, its own included; adds what holds for text.
  static BlockMask of(const at::Tensor& attends_BNCS, int64_t text_tokens);
  // The same as bool [B, N, E, Z], `positions` = Z.
  at::Tensor attends_BNEZ(int64_t positions) const;
};

}  // namespace vmoba::attention
