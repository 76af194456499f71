#include "data/yuv_to_rgb.h"

#include <algorithm>
#include <cmath>

// Loops of 16-bit arithmetic that the compiler turns into vector code, once for the base machine and once for AVX2.
#if defined(__x86_64__) && defined(__GNUC__)
#define VMOBA_HAS_AVX2_TWIN 1
#define VMOBA_AVX2 __attribute__((target("avx2")))
#endif
#define VMOBA_INLINE inline __attribute__((always_inline))

namespace vmoba::data {
namespace {

// Fixed point: results carry 4 fraction bits, luma enters with 7, chroma (sixteenfold by its weights) with 8.
constexpr int kFraction_bits = 4, kLuma_bits = 7, kChroma_bits = 8;
constexpr int kChromaWeight_bits = 4;

int16_t factor(double value, int input_bits) {
  return static_cast<int16_t>(std::lround(value * std::exp2(16 + kFraction_bits - input_bits)));
}

VMOBA_INLINE int16_t high_product(int16_t a, int16_t b) {
  return static_cast<int16_t>((int32_t{a} * b) >> 16);
}

VMOBA_INLINE uint8_t to_byte(int16_t value) {
  const auto level = static_cast<int16_t>(value >> kFraction_bits);
  return static_cast<uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
}

// A row of chroma at luma's resolution, sixteenfold, 0 for grey: three parts of the nearer row and column to one of the
// farther.
VMOBA_INLINE void interpolate_body(const uint8_t* __restrict near, const uint8_t* __restrict far, int64_t count,
                                   int16_t* __restrict blended, int16_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) blended[i] = static_cast<int16_t>(3 * near[i] + far[i] - 4 * 128);
  out[0] = static_cast<int16_t>(4 * blended[0]);
  for (int64_t i = 1; i < count; ++i) {
    out[2 * i - 1] = static_cast<int16_t>(3 * blended[i - 1] + blended[i]);
    out[2 * i] = static_cast<int16_t>(3 * blended[i] + blended[i - 1]);
  }
  out[2 * count - 1] = static_cast<int16_t>(4 * blended[count - 1]);
}

// One row. The pointers are __restrict parameters because the compiler takes only those as promises.
VMOBA_INLINE void convert_body(const uint8_t* __restrict luma, const int16_t* __restrict cb_row,
                               const int16_t* __restrict cr_row, uint8_t* __restrict red, uint8_t* __restrict green,
                               uint8_t* __restrict blue, int64_t width, YuvFactors f) {
  constexpr int kShift = kChroma_bits - kChromaWeight_bits;
  for (int64_t x = 0; x < width; ++x) {
    const auto y =
        static_cast<int16_t>(high_product(static_cast<int16_t>(luma[x] << kLuma_bits), f.luma) + f.luma_offset);
    const auto cb = static_cast<int16_t>(cb_row[x] * (1 << kShift)),
               cr = static_cast<int16_t>(cr_row[x] * (1 << kShift));
    red[x] = to_byte(static_cast<int16_t>(y + high_product(cr, f.red_of_cr)));
    green[x] = to_byte(static_cast<int16_t>(y + high_product(cb, f.green_of_cb) + high_product(cr, f.green_of_cr)));
    blue[x] = to_byte(static_cast<int16_t>(y + high_product(cb, f.blue_of_cb)));
  }
}

using Interpolate = void (*)(const uint8_t*, const uint8_t*, int64_t, int16_t*, int16_t*);
using Convert = void (*)(const uint8_t*, const int16_t*, const int16_t*, uint8_t*, uint8_t*, uint8_t*, int64_t,
                         YuvFactors);

void interpolate(const uint8_t* near, const uint8_t* far, int64_t count, int16_t* blended, int16_t* out) {
  interpolate_body(near, far, count, blended, out);
}
void convert(const uint8_t* luma, const int16_t* cb, const int16_t* cr, uint8_t* red, uint8_t* green, uint8_t* blue,
             int64_t width, YuvFactors factors) {
  convert_body(luma, cb, cr, red, green, blue, width, factors);
}

#ifdef VMOBA_HAS_AVX2_TWIN
VMOBA_AVX2 void interpolate_avx2(const uint8_t* near, const uint8_t* far, int64_t count, int16_t* blended,
                                 int16_t* out) {
  interpolate_body(near, far, count, blended, out);
}
VMOBA_AVX2 void convert_avx2(const uint8_t* luma, const int16_t* cb, const int16_t* cr, uint8_t* red, uint8_t* green,
                             uint8_t* blue, int64_t width, YuvFactors factors) {
  convert_body(luma, cb, cr, red, green, blue, width, factors);
}
#endif

struct Routines {
  Interpolate interpolate_row;
  Convert convert_row;
};

Routines routines() {
#ifdef VMOBA_HAS_AVX2_TWIN
  if (__builtin_cpu_supports("avx2")) return {interpolate_avx2, convert_avx2};
#endif
  return {interpolate, convert};
}

}  // namespace

YuvToRgb::YuvToRgb(const int* coefficients, bool full_range) {
  const double chroma = (full_range ? 224.0 / 255 : 1.0) / 65536, luma = full_range ? 1.0 : 255.0 / 219;
  factors_.luma = factor(luma, kLuma_bits);
  factors_.red_of_cr = factor(coefficients[0] * chroma, kChroma_bits);
  factors_.blue_of_cb = factor(coefficients[1] * chroma, kChroma_bits);
  factors_.green_of_cb = factor(-coefficients[2] * chroma, kChroma_bits);
  factors_.green_of_cr = factor(-coefficients[3] * chroma, kChroma_bits);
  // Half a level to round, and the half unit that each of two to three products loses on average.
  const double black = full_range ? 0 : 16 * luma * (1 << kFraction_bits);
  factors_.luma_offset = static_cast<int16_t>(std::lround((1 << (kFraction_bits - 1)) + 1.25 - black));
}

void YuvToRgb::run(const std::array<const uint8_t*, 3>& yuv, const std::array<int64_t, 3>& yuv_strides, int64_t width,
                   int64_t height, const std::array<uint8_t*, 3>& rgb, int64_t rgb_stride) {
  const int64_t chroma_width = (width + 1) / 2, chroma_height = (height + 1) / 2;
  blended_.resize(static_cast<size_t>(chroma_width));
  cb_.resize(static_cast<size_t>(2 * chroma_width));
  cr_.resize(static_cast<size_t>(2 * chroma_width));
  const Routines use = routines();
  for (int64_t y = 0; y < height; ++y) {
    const int64_t near = y / 2, far = std::clamp<int64_t>(y % 2 != 0 ? near + 1 : near - 1, 0, chroma_height - 1);
    use.interpolate_row(yuv[1] + near * yuv_strides[1], yuv[1] + far * yuv_strides[1], chroma_width, blended_.data(),
                        cb_.data());
    use.interpolate_row(yuv[2] + near * yuv_strides[2], yuv[2] + far * yuv_strides[2], chroma_width, blended_.data(),
                        cr_.data());
    const int64_t to = y * rgb_stride;
    use.convert_row(yuv[0] + y * yuv_strides[0], cb_.data(), cr_.data(), rgb[0] + to, rgb[1] + to, rgb[2] + to, width,
                    factors_);
  }
}

}  // namespace vmoba::data
