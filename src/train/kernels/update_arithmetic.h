// The arithmetic of one value, for both the kernels and the CPU. It is compiled without contraction of products and
// sums, so that both give the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/philox.h"
#include "train/kernels/updates.h"

namespace vmoba::updates {

VMOBA_BOTH uint32_t bits_of(float x) {
  uint32_t out;
  memcpy(&out, &x, sizeof out);
  return out;
}
VMOBA_BOTH float float_of(uint32_t bits) {
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}
VMOBA_BOTH float from_bfloat16(uint16_t x) {
  return float_of(uint32_t(x) << 16);
}

struct Draws {
  PhiloxBlock block;
  // 16 bits for value `i` of kDrawValues.
  VMOBA_BOTH uint32_t of(int i) const { return (block.words[i / 2] >> (16 * (i % 2))) & 0xFFFFu; }
};

VMOBA_BOTH Draws draw(uint64_t group, uint64_t step, const uint32_t (&key)[2]) {
  return {philox_block(group, step, key[0], key[1])};
}

// One of the two neighbours in bf16, the nearer one the likelier, so that the mean over draws is x. `bits` are 16
// random ones. A value of bf16 stays what it is.
VMOBA_BOTH uint16_t rounded(float x, uint32_t bits) {
  return uint16_t((bits_of(x) + bits) >> 16);
}

// AdamW (arXiv 1711.05101) as torch.optim.AdamW orders it; moments in fp32.
VMOBA_BOTH float updated(float weight, float gradient, float& first, float& second, const Step& s) {
  first = first * s.beta1 + gradient * s.rest1;
  second = second * s.beta2 + gradient * gradient * s.rest2;
  return weight * s.decay - s.step_size * first / (sqrtf(second) / s.root + s.eps);
}

VMOBA_BOTH float changed(float weight, float change, const Sum& s) {
  return weight * s.decay - s.size * change;
}

// The code of the value nearest to `x`, which lies within [-1, 1].
VMOBA_BOTH uint8_t code_of(float x, const float* bounds) {
  int code = 0;
  for (int half = 128; half > 0; half /= 2)
    if (bounds[code + half - 1] < x) code += half;
  return uint8_t(code);
}

// A moment in units of its block's scale; scales of blocks of zeros are 0.
VMOBA_BOTH float in_units(float moment, float scale) {
  return scale > 0 ? moment / scale : 0.0f;
}

}  // namespace vmoba::updates
