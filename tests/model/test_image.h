// The image of the fixture scripts of image encoders (scripts/make_clip_fixtures.py), in [-1, 1].
#pragma once
#include <ATen/ATen.h>

#include <cstdint>

namespace vmoba::test {

// [1, 3, H, W], fp32
inline at::Tensor image_of(int64_t height, int64_t width) {
  at::Tensor image_BCHW = at::empty({1, 3, height, width}, at::kFloat);
  float* out = image_BCHW.data_ptr<float>();
  for (int64_t c = 0; c < 3; ++c)
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) {
        const int64_t level = (x * 7 + y * 3 + c * 40 + (x / 9 + y / 11) % 2 * 90 + (x * y) / 64) % 256;
        *out++ = float(level) / 127.5F - 1;
      }
  return image_BCHW;
}

}  // namespace vmoba::test
