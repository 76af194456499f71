#include "train/codec/codec_clips.h"

#include <ATen/ATen.h>

#include <atomic>

#include "core/check.h"
#include "core/log.h"
#include "core/parallel.h"
#include "core/random.h"
#include "core/storage.h"
#include "data/clip_plan.h"
#include "data/dataset.h"
#include "data/video_reader.h"

namespace vmoba::train {
namespace {

constexpr data::ClipGeometry kGeometry = {4, 8};  // of the codecs that are trained

}  // namespace

std::vector<at::Tensor> decode_clips(const data::DataConfig& config, at::Device device) {
  const data::ClipPlan plan = data::plan_clips(config, kGeometry);
  data::check_failures(config, plan);
  std::vector<at::Tensor> found(plan.clips.size());
  const std::atomic<bool> cancel = false;
  Outage outage;
  for_each_part(int64_t(plan.clips.size()), data::decode_threads(config), [&](int64_t i) {
    const data::Clip& clip = plan.clips[size_t(i)];
    try {
      found[size_t(i)] =
          data::decode_planned_clip(plan, config, i, clip.start_s, /*flip=*/false, /*threads=*/1, outage, cancel);
    } catch (const data::MediaError& error) {
      log_warning("left out '{}': {}", clip.path, error.what());
    }
  });
  std::vector<at::Tensor> clips_CFHW;
  for (at::Tensor& clip_CFHW : found)
    if (clip_CFHW.defined()) clips_CFHW.push_back(std::exchange(clip_CFHW, {}).to(device));
  VMOBA_CHECK_INPUT(!clips_CFHW.empty(), "expected clips that can be decoded, found none of {}; check --data",
                    plan.clips.size());
  return clips_CFHW;
}

at::Tensor draw_crops(const std::vector<at::Tensor>& clips_CFHW, const CropSize& size, int64_t batch, uint64_t seed,
                      int64_t step) {
  RandomStream random(seed, "codec.crops", uint64_t(step));
  const auto begin = [&](int64_t whole, int64_t part) { return int64_t(random.below(uint64_t(whole - part + 1))); };
  std::vector<at::Tensor> crops_CFHW;
  for (int64_t b = 0; b < batch; ++b) {
    const at::Tensor& clip = clips_CFHW[random.below(clips_CFHW.size())];
    at::Tensor crop = clip.narrow(1, begin(clip.size(1), size.frames), size.frames)
                          .narrow(2, begin(clip.size(2), size.height), size.height)
                          .narrow(3, begin(clip.size(3), size.width), size.width);
    crops_CFHW.push_back(random.uniform() < 0.5 ? crop.flip({3}) : crop);
  }
  return at::stack(crops_CFHW).to(at::kFloat) / 255;
}

}  // namespace vmoba::train
