#include "train/checkpoint/host_memory.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace vmoba::train {

void HostMemory::reserve(int64_t bytes, bool page_locked) {
  const auto piece_bytes = [&](size_t i) { return std::min(kPieceBytes, bytes - int64_t(i) * kPieceBytes); };
  for (size_t i = 0; piece_bytes(i) > 0; ++i) {
    if (i == pieces_.size()) pieces_.emplace_back();
    if (!pieces_[i].defined() || pieces_[i].numel() < piece_bytes(i))  // the last one may have been smaller
      pieces_[i] = at::empty({piece_bytes(i)}, at::TensorOptions(at::kByte).pinned_memory(page_locked));
  }
}

at::Tensor HostMemory::run(int64_t begin, int64_t bytes) const {
  const at::Tensor& piece = pieces_.at(size_t(begin / kPieceBytes));
  const int64_t at = begin % kPieceBytes;
  return piece.narrow(0, at, std::min(bytes, piece.numel() - at));
}

}  // namespace vmoba::train
