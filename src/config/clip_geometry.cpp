#include "config/clip_geometry.h"

#include <algorithm>

#include "core/check.h"
#include "model/conditioning.h"

namespace vmoba {

data::ClipGeometry clip_geometry(const RootConfig& config) {
  const model::CodecShape codec = model::codec_shape(config.codec);
  model::check_sizes_known(config.model);
  const int64_t condition = model::condition_channels(config.model, codec);
  VMOBA_CHECK_INPUT(
      config.model.in_channels == codec.channels + condition && config.model.out_channels == codec.channels,
      "model.in_channels and model.out_channels: expected {} and {} (codec '{}', model.task {}), found {} "
      "and {}",
      codec.channels + condition, codec.channels, config.codec.type, config.model.task, config.model.in_channels,
      config.model.out_channels);
  VMOBA_CHECK_INPUT(config.model.patch_size[0] == 1 && config.model.patch_size[1] == config.model.patch_size[2],
                    "model.patch_size: expected [1, p, p], found [{}, {}, {}]", config.model.patch_size[0],
                    config.model.patch_size[1], config.model.patch_size[2]);
  data::ClipGeometry geometry{codec.temporal_stride, codec.spatial_stride * config.model.patch_size[1]};
  if (model::needs_first_frame(config.model)) geometry.least_frames = 1 + codec.temporal_stride;
  return geometry;
}

void check_sampling(const RootConfig& config) {
  const data::ClipGeometry geometry = clip_geometry(config);
  const SampleConfig& sample = config.sample;
  const int64_t stride = geometry.temporal_stride, below = 1 + (sample.frames - 1) / stride * stride;
  VMOBA_CHECK_INPUT(sample.frames == below, "sample.frames: expected 1 + {}n for this codec, found {}; use {} or {}",
                    stride, sample.frames, below, below + stride);
  VMOBA_CHECK_INPUT(sample.frames >= geometry.least_frames,
                    "sample.frames: expected at least {} for model.task {}, found {}", geometry.least_frames,
                    config.model.task, sample.frames);
  const int64_t multiple = geometry.pixel_multiple;
  const auto near = [&](int64_t pixels) { return std::max(multiple, (pixels + multiple / 2) / multiple * multiple); };
  VMOBA_CHECK_INPUT(
      sample.height % multiple == 0 && sample.width % multiple == 0,
      "sample.height and sample.width: expected multiples of {} (codec stride times patch size), found {} x {}; use {} "
      "x {}",
      multiple, sample.height, sample.width, near(sample.height), near(sample.width));
}

void check_text_width(const RootConfig& config, int64_t width) {
  VMOBA_CHECK_INPUT(width == config.model.text_dim,
                    "model.text_dim: expected {} (width of the embeddings of text.type {}), found {}", width,
                    config.text.type, config.model.text_dim);
}

}  // namespace vmoba
