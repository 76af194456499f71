// 8-bit YUV 4:2:0 -> planar 8-bit RGB of the same size: what a data set cut to its training size needs of every frame.
// swscale does this in 1.8 ns per pixel on the machine of docs/data.md, this in 0.35 (AVX2) or 0.6 (any other).
//
// Chroma is interpolated linearly with weights 3:1, its samples midway between the luma's. Within 0.7 of a level of
// the recommendations' formulas, rounding included.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace vmoba::data {

// Fixed-point factors of one matrix and range (yuv_to_rgb.cpp says of which scale).
struct YuvFactors {
  int16_t luma, luma_offset, red_of_cr, green_of_cb, green_of_cr, blue_of_cb;
};

class YuvToRgb {
 public:
  // `coefficients`: red of Cr, blue of Cb, green of Cb, green of Cr (both subtracted), for limited range, times 65536,
  // as sws_getCoefficients() gives them.
  YuvToRgb(const int* coefficients, bool full_range);
  // Planes Y, U, V with their strides in bytes to planes R, G, B with one stride; writes `width` bytes of each row.
  void run(const std::array<const uint8_t*, 3>& yuv, const std::array<int64_t, 3>& yuv_strides, int64_t width,
           int64_t height, const std::array<uint8_t*, 3>& rgb, int64_t rgb_stride);

 private:
  YuvFactors factors_;
  std::vector<int16_t> blended_, cb_, cr_;  // one row each
};

}  // namespace vmoba::data
