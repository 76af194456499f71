// One clip of the plan -> frames of a training sample.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "data/transforms.h"
#include "data/video_reader.h"

namespace vmoba::data {

struct ClipRequest {
  double start_s = 0;
  double fps = 16;
  int64_t frames = 1, height = 0, width = 0;
  bool flip = false;  // mirror the displayed picture left to right
  CropBox crop = {};  // part of the displayed picture; empty: all of it
};

// uint8 RGB [3, frames, height, width] on the CPU. Reads the file from where the reader stands if that is its start,
// else seeks. Throws MediaError where a frame is damaged or the file ends before the clip does.
at::Tensor decode_clip(VideoReader& reader, const ClipRequest& request);

}  // namespace vmoba::data
