#include "model/codec/dct_codec.h"

#include <ATen/ATen.h>

#include <array>
#include <cmath>

#include "core/check.h"
#include "model/codec/codec_checks.h"

// Shape letters: B samples, F frames, H x W pixels, T x R x Q blocks (time, rows, columns), t, y, x inside a block,
// P = 3*4*8*8 values of a block, C = 16 coefficients.
namespace vmoba::model {
namespace {

constexpr int64_t kTime = 4, kSpace = 8, kColours = 3, kChannels = 16;
constexpr int64_t kBlockValues = kColours * kTime * kSpace * kSpace;

// Luma, blue less red, green less the mean of the two others; made orthonormal below.
constexpr double kColourTurn[3][3] = {{1, 1, 1}, {-1, 0, 1}, {-1, 2, -1}};

struct Coefficient {
  int64_t colour, t, y, x;  // which basis function
  double mean, deviation;   // over natural video in [-1, 1], made by scripts/measure_dct_codec.py
};

// The 16 coefficients of greatest variance, greatest first.
constexpr std::array<Coefficient, kChannels> kCoefficients = {{
    {0, 0, 0, 0, -12.643, 14.236},
    {1, 0, 0, 0, 5.056, 11.817},
    {2, 0, 0, 0, -3.031, 9.147},
    {0, 0, 0, 1, -0.093, 2.597},
    {0, 0, 1, 0, 0.010, 2.212},
    {1, 0, 0, 1, -0.029, 1.711},
    {1, 0, 1, 0, 0.002, 1.645},
    {2, 0, 0, 1, 0.048, 1.622},
    {2, 0, 1, 0, 0.005, 1.429},
    {0, 0, 0, 2, -0.008, 1.363},
    {0, 0, 2, 0, 0.012, 1.152},
    {0, 0, 1, 1, 0.002, 1.053},
    {0, 1, 0, 0, -0.011, 0.892},
    {0, 0, 0, 3, -0.005, 0.795},
    {1, 0, 0, 2, 0.007, 0.765},
    {1, 0, 2, 0, 0.004, 0.638},
}};

// Orthonormal DCT-II: value at sample x of basis function k of n.
double cosine(int64_t n, int64_t k, int64_t x) {
  const double scale = std::sqrt((k == 0 ? 1.0 : 2.0) / double(n));
  return scale * std::cos(M_PI * double((2 * x + 1) * k) / double(2 * n));
}

double colour_weight(int64_t turned, int64_t colour) {
  const double* row = kColourTurn[turned];
  return row[colour] / std::sqrt(row[0] * row[0] + row[1] * row[1] + row[2] * row[2]);
}

// [C, P] fp32, rows orthonormal.
at::Tensor basis_matrix() {
  at::Tensor basis_CP = at::empty({kChannels, kBlockValues}, at::kFloat);
  float* out = basis_CP.data_ptr<float>();
  for (const Coefficient& c : kCoefficients)
    for (int64_t colour = 0; colour < kColours; ++colour)
      for (int64_t t = 0; t < kTime; ++t)
        for (int64_t y = 0; y < kSpace; ++y)
          for (int64_t x = 0; x < kSpace; ++x)
            *out++ = float(colour_weight(c.colour, colour) * cosine(kTime, c.t, t) * cosine(kSpace, c.y, y) *
                           cosine(kSpace, c.x, x));
  return basis_CP;
}

at::Tensor table_column(double Coefficient::*column) {
  at::Tensor out_C = at::empty({kChannels}, at::kFloat);
  for (int64_t i = 0; i < kChannels; ++i) out_C.data_ptr<float>()[i] = float(kCoefficients[size_t(i)].*column);
  return out_C;
}

class DctCodec : public Codec {
 public:
  explicit DctCodec(at::Device device)
      : basis_CP_(basis_matrix().to(device)),
        mean_C_(table_column(&Coefficient::mean).to(device)),
        deviation_C_(table_column(&Coefficient::deviation).to(device)) {}

  CodecShape shape() const override { return {kChannels, kTime, kSpace}; }

  at::Tensor encode(const at::Tensor& video_BCFHW) const override {
    const at::NoGradGuard no_grad;
    check_codec_video(video_BCFHW, shape(), "dct");
    const at::Tensor video = video_BCFHW.to(at::kFloat);
    const at::Tensor first = video.slice(2, 0, 1).expand({-1, -1, kTime, -1, -1});
    const at::Tensor whole = at::cat({first, video.slice(2, 1)}, 2);
    const int64_t batch = whole.size(0), T = whole.size(2) / kTime, R = whole.size(3) / kSpace,
                  Q = whole.size(4) / kSpace;
    const at::Tensor blocks = whole.view({batch, kColours, T, kTime, R, kSpace, Q, kSpace})
                                  .permute({0, 2, 4, 6, 1, 3, 5, 7})
                                  .reshape({batch, T, R, Q, kBlockValues});
    const at::Tensor latents = (at::matmul(blocks, basis_CP_.t()) - mean_C_) / deviation_C_;
    return latents.permute({0, 4, 1, 2, 3}).contiguous();
  }

  at::Tensor decode(const at::Tensor& latents_BCTHW) const override {
    const at::NoGradGuard no_grad;
    check_codec_latents(latents_BCTHW, shape(), "dct");
    const at::Tensor latents = latents_BCTHW.to(at::kFloat).permute({0, 2, 3, 4, 1});
    const int64_t batch = latents.size(0), T = latents.size(1), R = latents.size(2), Q = latents.size(3);
    const at::Tensor whole = at::matmul(latents * deviation_C_ + mean_C_, basis_CP_)
                                 .view({batch, T, R, Q, kColours, kTime, kSpace, kSpace})
                                 .permute({0, 4, 1, 5, 2, 6, 3, 7})
                                 .reshape({batch, kColours, T * kTime, R * kSpace, Q * kSpace});
    // What changes within the first block is not part of a single frame: take its mean.
    const at::Tensor first = whole.slice(2, 0, kTime).mean(2, /*keepdim=*/true);
    return at::cat({first, whole.slice(2, kTime)}, 2).clamp(-1, 1);
  }

 private:
  at::Tensor basis_CP_, mean_C_, deviation_C_;
};

}  // namespace

CodecShape dct_codec_shape(const CodecConfig&) {
  return {kChannels, kTime, kSpace};
}

std::unique_ptr<Codec> make_dct_codec(const CodecConfig& config, at::Device device) {
  VMOBA_CHECK_INPUT(config.weights.empty(), "codec.weights: expected empty for codec.type dct, found {}",
                    config.weights);
  VMOBA_CHECK_INPUT(config.compute_dtype == "fp32" && config.tile_size == 0,
                    "codec.compute_dtype and codec.tile_size: expected fp32 and 0 for codec.type dct, found {} and {}",
                    config.compute_dtype, config.tile_size);
  return std::make_unique<DctCodec>(device);
}

}  // namespace vmoba::model
