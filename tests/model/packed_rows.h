// Packed matrices of random bits.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <vector>

#include "core/random.h"
#include "model/common/packed.h"

namespace vmoba::test {

// Any bits are values, but the half-precision numbers have to be finite and small; `scale`: all of them, 0 for random.
inline at::Tensor random_rows(model::Packing packing, at::IntArrayRef shape, uint64_t seed, double scale = 0) {
  const model::PackedBlock block = model::packed_block(packing);
  RandomStream random(seed, "packed", 0);
  const at::Tensor out = at::empty({shape[0], model::packed_row_bytes(packing, shape[1])}, at::kByte);
  auto* bytes = out.data_ptr<uint8_t>();
  for (int64_t i = 0; i < out.numel(); ++i) bytes[i] = uint8_t(random.next_u64());
  std::vector<int64_t> halves = {0, 2};
  if (packing == model::Packing::kQ8_0) halves = {0};
  if (packing == model::Packing::kQ6_K) halves = {208};
  for (int64_t begin = 0; begin < out.numel(); begin += block.bytes)
    for (const int64_t half : halves) {
      const c10::Half value(float(scale > 0 ? scale : 1e-4 * random.normal()));
      std::memcpy(bytes + begin + half, &value, sizeof value);
    }
  return out;
}

}  // namespace vmoba::test
