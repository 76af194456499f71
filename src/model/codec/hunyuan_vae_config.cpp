#include "model/codec/hunyuan_vae_config.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"
#include "core/json.h"

namespace vmoba::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr size_t kStages = 4;
constexpr int64_t kMostChannels = 1 << 14;

// Fields that the network here has with one value.
void check_fixed(const json& config, const std::string& path) {
  const json fixed = {{"_class_name", "AutoencoderKLHunyuanVideo"},
                      {"in_channels", 3},
                      {"out_channels", 3},
                      {"act_fn", "silu"},
                      {"spatial_compression_ratio", 8},
                      {"temporal_compression_ratio", 4},
                      {"mid_block_add_attention", true}};
  for (const auto& [key, value] : fixed.items())
    VMOBA_CHECK_INPUT(config.value(key, value) == value, "'{}': expected {} {} of a HunyuanVideo VAE, found {}", path,
                      key, json_text(value), json_text(config[key]));
}

HunyuanVaeConfig from_json(const std::string& path) {
  const json config = read_json(path, kMaxConfigBytes, "a VAE's configuration");
  return use_json(path, [&] {
    check_fixed(config, path);
    HunyuanVaeConfig out;
    out.latent_channels = config.value("latent_channels", out.latent_channels);
    out.block_out_channels = config.value("block_out_channels", out.block_out_channels);
    out.layers_per_block = config.value("layers_per_block", out.layers_per_block);
    out.norm_num_groups = config.value("norm_num_groups", out.norm_num_groups);
    out.scaling_factor = config.value("scaling_factor", out.scaling_factor);
    return out;
  });
}

HunyuanVaeConfig from_shapes(const CodecWeights& weights) {
  HunyuanVaeConfig out;
  const std::vector<int64_t> latents = weights.shape("decoder.conv_in.conv.weight");
  VMOBA_CHECK_INPUT(latents.size() == 5 && !weights.shape("encoder.down_blocks.0.resnets.0.norm1.weight").empty(),
                    "expected a HunyuanVideo VAE with a 5-dimensional 'decoder.conv_in.conv.weight' and "
                    "'encoder.down_blocks.0.resnets.0.norm1.weight' at '{}' (codec.weights), found none",
                    weights.path());
  out.latent_channels = latents[1];
  for (size_t stage = 0; stage < kStages; ++stage) {
    const std::vector<int64_t> norm =
        weights.shape(fmt::format("encoder.down_blocks.{}.resnets.0.norm2.weight", stage));
    out.block_out_channels[stage] = norm.empty() ? 0 : norm[0];
  }
  return out;
}

}  // namespace

void HunyuanVaeConfig::validate(const std::string& origin) const {
  VMOBA_CHECK_INPUT(block_out_channels.size() == kStages, "'{}': expected block_out_channels of {} stages, found {}",
                    origin, kStages, block_out_channels.size());
  const auto in_range = [](int64_t value) { return value >= 1 && value <= kMostChannels; };
  VMOBA_CHECK_INPUT(in_range(latent_channels) && in_range(norm_num_groups) && layers_per_block >= 1 &&
                        layers_per_block <= 64 && scaling_factor > 0,
                    "'{}': expected latent_channels and norm_num_groups of 1 to {}, layers_per_block of 1 to 64 and "
                    "scaling_factor above 0, found {}, {}, {} and {}",
                    origin, kMostChannels, latent_channels, norm_num_groups, layers_per_block, scaling_factor);
  for (const int64_t width : block_out_channels)
    VMOBA_CHECK_INPUT(in_range(width) && width % norm_num_groups == 0,
                      "'{}': expected block_out_channels of 1 to {} that norm_num_groups ({}) divides, found {}",
                      origin, kMostChannels, norm_num_groups, width);
}

HunyuanVaeConfig read_hunyuan_vae_config(const CodecWeights& weights) {
  const std::string file = weights.config_file();
  const HunyuanVaeConfig config = file.empty() ? from_shapes(weights) : from_json(file);
  config.validate(file.empty() ? weights.path() : file);
  return config;
}

}  // namespace vmoba::model
