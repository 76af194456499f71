// Sizes of a TAEHV autoencoder (github.com/madebyollin/taehv), told by the shapes of its tensors, and which frames each
// of its latent frames sees.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/codec.h"

namespace vmoba::model {

constexpr size_t kTaehvStages = 3;  // each halves height and width

struct TaehvConfig {
  int64_t latent_channels = 16;
  int64_t patch_size = 1;  // pixels a side that are put into channels: 1, 2 for Wan2.2 TI2V-5B and HunyuanVideo 1.5
  // Of the first convolution and of the stages, in the order in which they run.
  std::array<int64_t, kTaehvStages + 1> encoder_widths = {64, 64, 64, 64};
  // Of the stages and of what the last one gives.
  std::array<int64_t, kTaehvStages + 1> decoder_widths = {256, 128, 64, 64};
  // Frames that a stage makes one of, and that it makes of one.
  std::array<int64_t, kTaehvStages> encoder_strides = {2, 2, 1}, decoder_strides = {1, 2, 2};
  // Latent frame 0 sees frame 0 alone and number n frames 4n-3 ... 4n, as in the Wan VAE. Published files: number n
  // sees frames 4n ... 4n+3, where the last frame stands for those behind the end.
  bool first_frame_alone = false;

  CodecShape shape() const;
  int64_t patch_channels() const { return 3 * patch_size * patch_size; }
  // The frame that the encoder sees at each of its places: temporal stride * latent frames, for 1 + stride * n frames.
  std::vector<int64_t> seen_frames(int64_t frames) const;
  // Throws Error(kInput) where the two halves do not belong together; `origin` names the file.
  void validate(const std::string& origin) const;
};

// By name of the tensor; empty where there is none.
using TaehvShapeOf = std::function<std::vector<int64_t>(const std::string& name)>;

// Throws Error(kInput) where tensors are missing or no TAEHV has such shapes; `origin` names the file.
TaehvConfig deduce_taehv_config(const TaehvShapeOf& shape_of, const std::string& origin);

}  // namespace vmoba::model
