#include "model/codec/taehv_config.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::model {
namespace {

constexpr int64_t kMaxWidth = 4096;
constexpr int64_t kMaxPatch = 8;

int64_t product(const std::array<int64_t, kTaehvStages>& values) {
  int64_t out = 1;
  for (const int64_t value : values) out *= value;
  return out;
}

}  // namespace

CodecShape TaehvConfig::shape() const {
  return {latent_channels, product(encoder_strides), patch_size << kTaehvStages};
}

std::vector<int64_t> TaehvConfig::seen_frames(int64_t frames) const {
  const CodecShape sizes = shape();
  const int64_t places = sizes.latent_frames(frames) * sizes.temporal_stride;
  const int64_t first = first_frame_alone ? 1 - sizes.temporal_stride : 0;
  std::vector<int64_t> out;
  for (int64_t place = 0; place < places; ++place) out.push_back(std::clamp<int64_t>(first + place, 0, frames - 1));
  return out;
}

void TaehvConfig::validate(const std::string& origin) const {
  const auto check_width = [&](int64_t width) {
    VMOBA_CHECK_INPUT(width >= 1 && width <= kMaxWidth, "expected widths of 1 to {} in '{}' (codec.weights), found {}",
                      kMaxWidth, origin, width);
  };
  std::for_each(encoder_widths.begin(), encoder_widths.end(), check_width);
  std::for_each(decoder_widths.begin(), decoder_widths.end(), check_width);
  check_width(latent_channels);
  VMOBA_CHECK_INPUT(patch_size >= 1 && patch_size <= kMaxPatch,
                    "expected patches of 1 to {} pixels a side in '{}' (codec.weights), found {}", kMaxPatch, origin,
                    patch_size);
  const auto halves_or_keeps = [](int64_t stride) { return stride == 1 || stride == 2; };
  VMOBA_CHECK_INPUT(std::all_of(encoder_strides.begin(), encoder_strides.end(), halves_or_keeps) &&
                        std::all_of(decoder_strides.begin(), decoder_strides.end(), halves_or_keeps) &&
                        product(encoder_strides) == product(decoder_strides),
                    "expected an encoder and a decoder with the same strides of 1 or 2 frames in '{}' (codec.weights), "
                    "found {} and {}",
                    origin, fmt::join(encoder_strides, "x"), fmt::join(decoder_strides, "x"));
}

TaehvConfig deduce_taehv_config(const TaehvShapeOf& shape_of, const std::string& origin) {
  const auto demand = [&](const std::string& name) {
    const std::vector<int64_t> shape = shape_of(name);
    VMOBA_CHECK_INPUT(shape.size() == 4 && *std::min_element(shape.begin(), shape.end()) > 0,
                      "expected a TAEHV autoencoder with a 4-dimensional '{}' at '{}' (codec.weights), found {}; use "
                      "taew2_1 or taehv",
                      name, origin, shape.empty() ? "none" : fmt::format("{}", fmt::join(shape, "x")));
    return shape;
  };
  TaehvConfig config;
  const std::vector<int64_t> first = demand("encoder.0.weight");
  config.encoder_widths[0] = first[0];
  while (config.patch_channels() < first[1] && config.patch_size <= kMaxPatch) ++config.patch_size;
  for (size_t i = 0; i < kTaehvStages; ++i) {
    const std::vector<int64_t> pool = demand(fmt::format("encoder.{}.conv.weight", 2 + 5 * i));
    config.encoder_strides[i] = pool[1] / pool[0];
    config.encoder_widths[i + 1] = demand(fmt::format("encoder.{}.weight", 3 + 5 * i))[0];
    const std::vector<int64_t> grow = demand(fmt::format("decoder.{}.conv.weight", 7 + 6 * i));
    config.decoder_strides[i] = grow[0] / grow[1];
    const std::vector<int64_t> narrow = demand(fmt::format("decoder.{}.weight", 8 + 6 * i));
    config.decoder_widths[i] = narrow[1];
    config.decoder_widths[i + 1] = narrow[0];
  }
  config.latent_channels = demand("decoder.1.weight")[1];
  config.validate(origin);
  return config;
}

}  // namespace vmoba::model
