#include "model/codec/wan_vae_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"

namespace vmoba::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxWidth = 1 << 16;

// Wan-Video/Wan2.1 wan/modules/vae.py and Wan-Video/Wan2.2 wan/modules/vae2_2.py.
const std::vector<double> kMean21 = {-0.7571, -0.7089, -0.9113, 0.1075,  -0.1745, 0.9653,  -0.1517, 1.5508,
                                     0.4134,  -0.0715, 0.5517,  -0.3632, -0.1922, -0.9497, 0.2503,  -0.2921};
const std::vector<double> kStd21 = {2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                                    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160};
const std::vector<double> kMean22 = {
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174,  0.1838,  0.1557,  -0.1382, 0.0542,  0.2813,  0.0891,
    0.1570,  -0.0098, 0.0375,  -0.1825, -0.2246, -0.1207, -0.0698, 0.5109,  0.2665,  -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109,  0.1567,  -0.0729, 0.0899,  -0.2799, -0.1230, -0.0313, -0.1649, 0.0117,  0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748,  0.0152,  0.1957,  0.1433,  -0.2944, 0.3573,  -0.0548, -0.1681, -0.0667};
const std::vector<double> kStd22 = {0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344,
                                    0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804,
                                    0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999,
                                    0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
                                    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744};

// A field of config.json that is there and not null, as T; otherwise what it was.
template <typename T>
void read_field(const json& from, const char* key, const std::string& path, T& value) {
  const auto found = from.find(key);
  if (found == from.end() || found->is_null()) return;
  try {
    value = found->get<T>();
  } catch (const json::exception&) {
    throw_input("expected a {} of the usual type in '{}', found {}", key, path, json_text(*found));
  }
}

void check_width(int64_t width, const char* key, const std::string& origin) {
  VMOBA_CHECK_INPUT(width >= 1 && width <= kMaxWidth, "expected {} of 1 to {} in '{}', found {}", key, kMaxWidth,
                    origin, width);
}

// The published statistics of this many channels.
void set_published_statistics(WanVaeConfig& config) {
  config.latents_mean = config.z_dim == 48 ? kMean22 : kMean21;
  config.latents_std = config.z_dim == 48 ? kStd22 : kStd21;
}

// Wan2.2's shortcuts group or repeat channels, Wan2.1's upsamplers halve them.
void check_divisible(const WanVaeConfig& config, const std::string& origin) {
  const size_t last = config.dim_mult.size() - 1;
  for (size_t i = 0; i <= last; ++i) {
    const int64_t factor = i == last ? 1 : (config.temporal_downsample[i] ? 8 : 4);
    const int64_t in = config.dim_mult[i == 0 ? 0 : i - 1] * config.base_dim / (i == 0 ? config.dim_mult[0] : 1);
    const int64_t up_factor = i == 0 ? 1 : (config.temporal_downsample[i - 1] ? 8 : 4);
    const int64_t up_in = config.decoder_base_dim * config.dim_mult[std::min(i + 1, last)];
    const int64_t out = config.base_dim * config.dim_mult[i], up_out = config.decoder_base_dim * config.dim_mult[i];
    const bool fits = config.is_residual ? in * factor % out == 0 && (i == 0 || up_out * up_factor % up_in == 0)
                                         : i == 0 || up_out % 2 == 0;
    VMOBA_CHECK_INPUT(fits,
                      "expected widths that divide from stage to stage in '{}', found base_dim {}, "
                      "decoder_base_dim {} and dim_mult [{}]",
                      origin, config.base_dim, config.decoder_base_dim, fmt::join(config.dim_mult, ", "));
  }
}

}  // namespace

CodecShape WanVaeConfig::shape() const {
  const auto halvings = std::count(temporal_downsample.begin(), temporal_downsample.end(), true);
  return {z_dim, int64_t{1} << halvings, patch_size << (dim_mult.size() - 1)};
}

void WanVaeConfig::validate(const std::string& origin) const {
  check_width(base_dim, "base_dim", origin);
  check_width(decoder_base_dim, "decoder_base_dim", origin);
  check_width(z_dim, "z_dim", origin);
  VMOBA_CHECK_INPUT(dim_mult.size() >= 2 && dim_mult.size() <= 8 &&
                        std::all_of(dim_mult.begin(), dim_mult.end(), [](int64_t m) { return m >= 1 && m <= 64; }),
                    "expected 2 to 8 factors of 1 to 64 as dim_mult in '{}', found [{}]", origin,
                    fmt::join(dim_mult, ", "));
  VMOBA_CHECK_INPUT(temporal_downsample.size() + 1 == dim_mult.size(),
                    "expected {} values of temperal_downsample (one less than of dim_mult) in '{}', found {}",
                    dim_mult.size() - 1, origin, temporal_downsample.size());
  VMOBA_CHECK_INPUT(num_res_blocks >= 1 && num_res_blocks <= 16, "expected num_res_blocks of 1 to 16 in '{}', found {}",
                    origin, num_res_blocks);
  VMOBA_CHECK_INPUT(patch_size >= 1 && patch_size <= 8, "expected a patch_size of 1 to 8 in '{}', found {}", origin,
                    patch_size);
  VMOBA_CHECK_INPUT(int64_t(latents_mean.size()) == z_dim && int64_t(latents_std.size()) == z_dim,
                    "expected {} latents_mean and latents_std (z_dim) in '{}', found {} and {}", z_dim, origin,
                    latents_mean.size(), latents_std.size());
  for (const double deviation : latents_std)
    VMOBA_CHECK_INPUT(deviation > 0, "expected positive latents_std in '{}', found {}", origin, deviation);
  check_divisible(*this, origin);
}

WanVaeConfig read_wan_vae_config(const std::string& path) {
  const json from = read_json(path, kMaxConfigBytes, "the configuration of a VAE");
  VMOBA_CHECK_INPUT(from.is_object(), "expected a JSON object in '{}', found something else", path);
  std::string class_name = "AutoencoderKLWan";
  read_field(from, "_class_name", path, class_name);
  VMOBA_CHECK_INPUT(class_name == "AutoencoderKLWan",
                    "expected the configuration of an AutoencoderKLWan in '{}' (codec.weights), found {}", path,
                    class_name);
  WanVaeConfig config;
  std::vector<double> attn_scales;
  int64_t in_channels = 3, out_channels = 3;
  read_field(from, "base_dim", path, config.base_dim);
  config.decoder_base_dim = config.base_dim;
  read_field(from, "decoder_base_dim", path, config.decoder_base_dim);
  read_field(from, "z_dim", path, config.z_dim);
  read_field(from, "dim_mult", path, config.dim_mult);
  read_field(from, "num_res_blocks", path, config.num_res_blocks);
  read_field(from, "temperal_downsample", path, config.temporal_downsample);
  read_field(from, "is_residual", path, config.is_residual);
  read_field(from, "patch_size", path, config.patch_size);
  read_field(from, "attn_scales", path, attn_scales);
  read_field(from, "in_channels", path, in_channels);
  read_field(from, "out_channels", path, out_channels);
  set_published_statistics(config);
  read_field(from, "latents_mean", path, config.latents_mean);
  read_field(from, "latents_std", path, config.latents_std);
  VMOBA_CHECK_INPUT(attn_scales.empty(), "expected no attn_scales in '{}' (no published Wan VAE has any), found {}",
                    path, attn_scales.size());
  config.validate(path);
  VMOBA_CHECK_INPUT(in_channels == config.patch_channels() && out_channels == config.patch_channels(),
                    "expected in_channels and out_channels of 3 * patch_size^2 ({}) in '{}', found {} and {}",
                    config.patch_channels(), path, in_channels, out_channels);
  return config;
}

WanVaeConfig deduce_wan_vae_config(const ShapeOf& shape_of, const std::string& origin) {
  const auto demand = [&](const char* name) {
    const std::vector<int64_t> shape = shape_of(name);
    VMOBA_CHECK_INPUT(shape.size() == 5,
                      "expected a Wan VAE with a 5-dimensional '{}' at '{}' (codec.weights), found {}", name, origin,
                      shape.empty() ? "none" : fmt::format("{}", fmt::join(shape, "x")));
    return shape;
  };
  WanVaeConfig config;
  const std::vector<int64_t> first = demand("encoder.conv_in.weight"), last = demand("decoder.conv_out.weight");
  config.base_dim = first[0];
  config.decoder_base_dim = last[1] / config.dim_mult.front();
  config.z_dim = demand("post_quant_conv.weight")[0];
  config.is_residual = !shape_of("encoder.down_blocks.0.resnets.0.conv1.weight").empty();
  while (config.patch_channels() < first[1] && config.patch_size < 8) ++config.patch_size;
  VMOBA_CHECK_INPUT(first[1] == config.patch_channels() && last[0] == config.patch_channels(),
                    "expected 3 * patch^2 colours in encoder.conv_in and decoder.conv_out at '{}', found {} and {}",
                    origin, first[1], last[0]);
  VMOBA_CHECK_INPUT(config.z_dim == 16 || config.z_dim == 48,
                    "expected 16 (Wan2.1) or 48 (Wan2.2) latent channels at '{}', found {}; another VAE needs its "
                    "diffusers folder with config.json",
                    origin, config.z_dim);
  set_published_statistics(config);
  config.validate(origin);
  return config;
}

}  // namespace vmoba::model
