// The own keys of HunyuanVideo 1.0 and 1.5 in the `model:` group. Both are one network of which each has parts: 1.5 has
// no single-stream blocks, no pooled text and no guidance, but glyph and image tokens beside the text.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/architecture.h"
#include "model/common/rope.h"

namespace vmoba::model {

struct HunyuanConfig {
  int64_t ffn_dim = 12288;
  int64_t single_layers = 40;
  int64_t refiner_layers = 2;
  int64_t pooled_dim = 768;  // 0: no pooled text
  bool guidance_embed = true;
  int64_t glyph_dim = 0;  // 0: neither glyph nor image tokens, and no rows for kinds of tokens
  int64_t glyph_hidden_dim = 2048;
  bool meanflow = false;  // told where a step leads to (Conditions::next_timestep_B)
  double rope_theta = 256;
  std::vector<int64_t> rope_axes = {16, 56, 56};
  std::string image_condition = "none";  // none | replace | concat
};

// Defaults of 1.5.
struct Hunyuan15Config : HunyuanConfig {
  Hunyuan15Config() {
    ffn_dim = 8192;
    single_layers = pooled_dim = 0;
    guidance_embed = false;
    glyph_dim = 1472;
    image_condition = "concat";
  }
};

inline constexpr const char* kHunyuan = "hunyuan_video";
inline constexpr const char* kHunyuan15 = "hunyuan_video_15";

inline constexpr int64_t kWaveChannels = 256;    // of sinusoids of timesteps and guidance
inline constexpr int64_t kRefinerExpansion = 4;  // of the refiner's feed-forward, whatever ffn_dim is

// Of the configured architecture, which is one of the two.
const HunyuanConfig& hunyuan_of(const ModelConfig& config);
HunyuanConfig& hunyuan_of(ModelConfig& config);
bool is_hunyuan_15(const ModelConfig& config);

RopeAxes rope_axes_of(const HunyuanConfig& hunyuan);

// The rows' functions.
void visit_hunyuan(ModelConfig& config, ConfigVisitor& v);
void visit_hunyuan_15(ModelConfig& config, ConfigVisitor& v);
// Throws Error(kInput) where widths or the task do not fit.
void validate_hunyuan(const ModelConfig& config);
ImageInput hunyuan_image_input(const ModelConfig& config);

}  // namespace vmoba::model
