#include "apps/train/published_sizes.h"

#include <array>

#include "model/wan/wan_config.h"

namespace vmoba::apps {
namespace {

struct PublishedModel {
  const char* name;
  int64_t layers, heads, ffn_dim, in_channels, out_channels, image_dim, image_pos_tokens;
};

constexpr std::array<PublishedModel, 7> kModels = {{
    {"T2V-1.3B", 30, 12, 8960, 16, 16, 0, 0},
    {"FLF2V-14B", 40, 40, 13824, 36, 16, 1280, 514},
    {"I2V-14B", 40, 40, 13824, 36, 16, 1280, 0},
    {"T2V-14B", 40, 40, 13824, 16, 16, 0, 0},
    {"TI2V-5B", 30, 24, 14336, 48, 48, 0, 0},
    {"I2V-A14B", 40, 40, 13824, 36, 16, 0, 0},
    {"T2V-A14B", 40, 40, 13824, 16, 16, 0, 0},
}};

}  // namespace

std::string take_published_sizes(model::ModelConfig& config) {
  for (const PublishedModel& model : kModels) {
    if (config.architecture != "wan" || config.missing_weights.find(model.name) == std::string::npos) continue;
    config.layers = model.layers;
    config.heads = model.heads;
    config.head_dim = 128;
    config.in_channels = model.in_channels;
    config.out_channels = model.out_channels;
    config.text_dim = 4096;
    config.image_dim = model.image_dim;
    config.patch_size = {1, 2, 2};
    model::WanConfig& wan = config.own<model::WanConfig>();
    wan.ffn_dim = model.ffn_dim;
    wan.freq_dim = 256;
    wan.image_pos_tokens = model.image_pos_tokens;
    wan.cross_attn_norm = true;
    config.missing_weights.clear();
    return model.name;
  }
  return "";
}

}  // namespace vmoba::apps
