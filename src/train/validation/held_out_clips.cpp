#include "train/validation/held_out_clips.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <atomic>
#include <filesystem>

#include "core/random.h"
#include "core/storage.h"
#include "data/dataset.h"
#include "data/video_reader.h"
#include "model/common/to_device.h"
#include "model/image_text_encoder.h"

namespace vmoba::train {
namespace {

at::Tensor decoded(const HeldOutEncoder& encoder, int64_t clip) {
  const std::atomic<bool> cancel = false;
  Outage outage;
  const int threads = int(data::decode_threads(encoder.config.data));
  return data::decode_planned_clip(encoder.plan, encoder.config.data, clip, encoder.plan.clips[size_t(clip)].start_s,
                                   /*flip=*/false, threads, outage, cancel);
}

// Where it cannot be decoded, ranks that compute in step still need something of its shape.
at::Tensor black_video(const data::ClipPlan& plan, const data::Clip& clip) {
  const data::Bucket& bucket = plan.buckets[size_t(clip.bucket)];
  return at::zeros({3, bucket.frames, bucket.height, bucket.width}, at::kByte);
}

}  // namespace

HeldOutClip encode_held_out(const HeldOutEncoder& encoder, int64_t clip) {
  const data::Clip& planned = encoder.plan.clips[size_t(clip)];
  HeldOutClip out;
  out.name = fmt::format("{}@{:.3f}", std::filesystem::path(planned.path).filename().string(), planned.start_s);
  std::optional<data::EncodedClip> known;
  if (encoder.cache) known = encoder.cache->find(encoder.first_cached + clip, /*flip=*/false);
  if (known) out.failure = known->failure;
  if (known && known->failure.empty()) {
    out.encoded = std::move(known->tensors);
  } else {
    at::Tensor video_CFHW = black_video(encoder.plan, planned);
    try {
      if (out.failure.empty()) video_CFHW = decoded(encoder, clip);
    } catch (const data::MediaError& error) {
      out.failure = error.what();
    }
    const at::NoGradGuard no_grad;
    const at::Tensor video_1CFHW = data::to_unit_range(model::to_device(video_CFHW, encoder.device)).unsqueeze(0);
    out.encoded = clip_tensors(encoder.config.model,
                               encode_videos(encoder.config.model, encoder.codec, encoder.image, video_1CFHW));
    out.encoded.merge(texts_beside(encoder.config, encoder.text, planned.caption, video_1CFHW));
  }
  for (auto& [name, tensor] : out.encoded) tensor = tensor.cpu();
  const bool seen = model::sees_images(encoder.config.text);
  out.text = model::to_device(
      seen ? texts_of_clips({out.encoded}, {planned.caption}) : encoder.text.encode({planned.caption}), at::kCPU);
  return out;
}

at::Tensor held_out_noise(uint64_t seed, const std::string& clip, double sigma, at::IntArrayRef shape) {
  // The stream of training's noise, at a number that no sample of a run comes to.
  return draw_noise(seed, int64_t(hash_name(fmt::format("{}/{}", clip, sigma))), shape);
}

TrainingBatch held_out_batch(const RootConfig& config, uint64_t seed, const HeldOutClip& clip, double sigma,
                             at::Device device) {
  const EncodedBatch encoded = batch_of_clips(config.model, {clip.encoded}, clip.text, device);
  model::ImageCondition condition = encoded.condition;
  if (condition.first_BC1HW.defined()) {
    const double draw = RandomStream(seed, "validate.first_frame", hash_name(clip.name)).uniform();
    const bool given = encoded.x0_BCTHW.size(2) > 1 && draw < config.train.flow.first_frame_rate;
    condition.given_B = at::full({1}, given, at::kBool);
  }
  const at::Tensor noise = held_out_noise(seed, clip.name, sigma, encoded.x0_BCTHW.sizes().slice(1));
  TrainingBatch out =
      conditioned_batch(encoded, condition, noisy_batch(encoded.x0_BCTHW, {noise}, {float(1000.0 * sigma)}, {1.0F}));
  tell_numbers(config.model, config.train.flow, out);
  return out;
}

at::Tensor held_out_loss(model::Dit& dit, const TrainingBatch& batch, const model::ForwardOptions& options) {
  const at::NoGradGuard no_grad;
  return flow_loss(dit.forward(batch.input, options), batch.noisy);
}

}  // namespace vmoba::train
