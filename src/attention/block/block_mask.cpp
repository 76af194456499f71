#include "attention/block/block_mask.h"

#include <ATen/ATen.h>

namespace vmoba::attention {

BlockMask BlockMask::of(const at::Tensor& attends_BNCS, int64_t text_tokens) {
  const int64_t blocks = attends_BNCS.size(2), tokens = attends_BNCS.size(3), positions = tokens + text_tokens;
  const int64_t words = (positions + 31) / 32, entries = blocks + (text_tokens > 0 ? 1 : 0);
  const auto as_bytes = attends_BNCS.options().dtype(at::kByte);
  at::Tensor padded_BNEP = at::zeros({attends_BNCS.size(0), attends_BNCS.size(1), entries, 32 * words}, as_bytes);
  if (text_tokens > 0) padded_BNEP.slice(3, 0, positions).fill_(1);
  padded_BNEP.slice(2, 0, blocks).slice(3, 0, tokens).copy_(attends_BNCS);
  // Eight positions a byte, the first in the lowest bit; four bytes a word, the first lowest.
  const at::Tensor bit = at::bitwise_left_shift(at::ones({8}, as_bytes), at::arange(8, as_bytes));
  const at::Tensor bytes = (padded_BNEP.unflatten(3, {-1, 8}) * bit).sum(-1, false, at::kByte);
  return {bytes.view(at::kInt), {}};
}

at::Tensor BlockMask::attends_BNEZ(int64_t positions) const {
  const at::Tensor bit = at::arange(32, words_BNEW.options());
  const at::Tensor bits = at::bitwise_and(at::bitwise_right_shift(words_BNEW.unsqueeze(-1), bit), 1);
  return bits.flatten(3).slice(3, 0, positions).to(at::kBool);
}

}  // namespace vmoba::attention
