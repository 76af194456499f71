#include "apps/published_sizes.h"

#include <array>
#include <map>

#include "model/hunyuan/hunyuan_config.h"
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

const std::map<std::string, std::string> kShortNames = {{"1.3b", "T2V-1.3B"}, {"5b", "TI2V-5B"}, {"14b", "T2V-14B"}};

void set_wan_sizes(const PublishedModel& model, model::ModelConfig& config) {
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
}

// Those of text to video; what is HunyuanVideo's own is published as its keys' defaults.
void set_hunyuan_sizes(model::ModelConfig& config) {
  const bool first = config.architecture == model::kHunyuan;
  config.layers = first ? 20 : 54;
  config.heads = first ? 24 : 16;
  config.head_dim = 128;
  config.in_channels = first ? 16 : 65;
  config.out_channels = first ? 16 : 32;
  config.text_dim = first ? 4096 : 3584;
  config.image_dim = first ? 0 : 1152;
  config.patch_size = first ? std::vector<int64_t>{1, 2, 2} : std::vector<int64_t>{1, 1, 1};
}

bool is_hunyuan(const std::string& name) {
  return name == model::kHunyuan || name == model::kHunyuan15;
}

}  // namespace

std::string take_published_sizes(model::ModelConfig& config) {
  if (config.missing_weights.empty()) return "";
  if (is_hunyuan(config.architecture) && config.task == "t2v") {
    set_hunyuan_sizes(config);
    config.missing_weights.clear();
    return config.architecture == model::kHunyuan ? "HunyuanVideo" : "HunyuanVideo 1.5";
  }
  if (config.architecture != "wan") return "";
  for (const PublishedModel& model : kModels) {
    if (config.missing_weights.find(model.name) == std::string::npos) continue;
    set_wan_sizes(model, config);
    config.missing_weights.clear();
    return std::string("Wan's ") + model.name + ", after the name";
  }
  return "";
}

std::vector<std::string> published_names() {
  return {"1.3b", "5b", "14b", model::kHunyuan, model::kHunyuan15};
}

void set_published_sizes(const std::string& name, model::ModelConfig& config) {
  config.architecture = is_hunyuan(name) ? name : "wan";
  if (is_hunyuan(name)) return set_hunyuan_sizes(config);
  for (const PublishedModel& model : kModels)
    if (kShortNames.at(name) == model.name) set_wan_sizes(model, config);
}

}  // namespace vmoba::apps
