#include "attention/native/tile_memory.h"

namespace vmoba::attention::native {

int64_t tile_list_bytes(const kernels::TileShape& s) {
  const int64_t keys = int64_t(s.tiles) * s.key_pieces(), rows = int64_t(s.blocks) * s.pieces();
  const int64_t key_counts = int64_t(s.tiles) * (s.strip_rows > 0 ? 2 : 1);
  const int64_t counts = key_counts + s.blocks + s.key_blocks(), mask = int64_t(s.tiles) * s.blocks;
  const auto size = [](int64_t lists, int64_t numbers) {
    return lists * int64_t(sizeof(uint16_t)) + numbers * int64_t(sizeof(int32_t));
  };
  return int64_t(s.batch) * s.heads * (size(keys + rows, counts) + mask);
}

int64_t tile_copy_bytes(const kernels::TileShape& s) {
  constexpr int64_t kCopies = 3, kBf16Bytes = 2;
  return kCopies * kBf16Bytes * s.batch * s.heads * s.tokens() * s.head_dim;
}

int32_t tile_wave_heads(const kernels::TileShape& shape) {
  kernels::TileShape sample = shape, wave = shape;
  sample.batch = wave.batch = 1;
  const int64_t left = kTileBudgetBytes - tile_list_bytes(sample);
  int32_t waves = 1;
  const auto heads_of = [&] { return (shape.heads + waves - 1) / waves; };
  for (; heads_of() > 1; ++waves) {
    wave.heads = heads_of();
    if (tile_copy_bytes(wave) + kernels::tile_backward_workspace_bytes(wave, /*means=*/true) <= left) break;
  }
  return heads_of();
}

}  // namespace vmoba::attention::native
