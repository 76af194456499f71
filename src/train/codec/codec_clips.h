// Clips to train a codec on: decoded once, kept as bytes on the device, and random crops of them. A codec that is
// trained sees hundreds of crops a second, more than could be decoded.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "data/config.h"

namespace vmoba::train {

// All clips that the configuration's plan has, uint8 [3, F, H, W] each, RGB, in the plan's order. Undecodable ones are
// left out with a warning. Throws Error(kInput) where none is left.
std::vector<at::Tensor> decode_clips(const data::DataConfig& config, at::Device device);

struct CropSize {
  int64_t frames = 0, height = 0, width = 0;
};

// Batch number `step`: clips drawn evenly, a part of each drawn evenly, half of them mirrored: fp32 [B, 3, F, H, W] in
// [0, 1]. A function of seed and step. Clips are no smaller than the crops.
at::Tensor draw_crops(const std::vector<at::Tensor>& clips_CFHW, const CropSize& size, int64_t batch, uint64_t seed,
                      int64_t step);

}  // namespace vmoba::train
