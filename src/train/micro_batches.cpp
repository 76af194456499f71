#include "train/micro_batches.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>

#include <utility>

#include "config/experts.h"
#include "model/common/to_device.h"
#include "model/image_text_encoder.h"
#include "train/expert.h"
#include "train/loss_mask.h"
#include "train/signals.h"

namespace vmoba::train {

MicroBatches::MicroBatches(const RootConfig& config, const data::ClipPlan& plan, data::SampleStream& stream,
                           const model::Codec& codec, const model::TextEncoder& text, const model::ImageEncoder* image,
                           int64_t samples, at::Device device, std::function<bool()> give_up)
    : config_(config),
      plan_(plan),
      stream_(stream),
      codec_(codec),
      text_(text),
      image_(image),
      samples_(samples),
      device_(device),
      give_up_(std::move(give_up)) {}

NamedTensors MicroBatches::encoded_clip(const data::Sample& sample) const {
  if (!sample.encoded.empty()) return sample.encoded;
  const at::Tensor video_1CFHW = data::to_unit_range(model::to_device(sample.video_CFHW, device_)).unsqueeze(0);
  NamedTensors out = clip_tensors(config_.model, encode_videos(config_.model, codec_, image_, video_1CFHW));
  out.merge(texts_beside(config_, text_, sample.caption, video_1CFHW));
  return out;
}

MicroBatch MicroBatches::make() {
  const size_t experts = expert_count(config_);
  MicroBatch out;
  out.parts.resize(experts);
  std::vector<std::vector<NamedTensors>> clips(experts);
  std::vector<std::vector<std::string>> captions(experts);
  std::vector<std::vector<at::Tensor>> masks(experts);
  const auto seed = uint64_t(config_.seed);
  for (int64_t i = 0; i < samples_; ++i) {
    const std::optional<data::Sample> next = stream_.next_unless(give_up_);
    if (!next) throw Stopped();
    const data::Sample& sample = *next;
    const size_t expert = expert_of_sample(config_, sample.index);
    clips[expert].push_back(encoded_clip(sample));
    captions[expert].push_back(drop_caption(config_.train.flow, seed, sample.index) ? "" : sample.caption);
    masks[expert].push_back(sample.mask_FHW);
    out.parts[expert].samples.push_back(sample.index);
    out.samples.push_back(sample.index);
    out.clips.push_back(plan_.clips[size_t(sample.clip)].path);
  }
  for (size_t expert = 0; expert < experts; ++expert) {
    MicroBatch::Part& part = out.parts[expert];
    if (part.samples.empty()) continue;
    const model::TextEmbedding text = model::sees_images(config_.text) ? texts_of_clips(clips[expert], captions[expert])
                                                                       : text_.encode(captions[expert]);
    const EncodedBatch encoded = batch_of_clips(config_.model, clips[expert], text, device_);
    part.batch = make_batch(config_.train.flow, seed, part.samples, encoded);
    const at::Tensor& x0 = encoded.x0_BCTHW;
    if (const at::Tensor mask = latent_masks(masks[expert], x0.size(2), x0.size(3), x0.size(4)); mask.defined())
      part.batch.noisy.mask_BTHW = model::to_device(mask, device_);
    tell_numbers(config_.model, config_.train.flow, part.batch);
  }
  return out;
}

MicroBatch MicroBatches::next() {
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  if (prepared_) return *std::exchange(prepared_, std::nullopt);
  const double before = stream_.stats().wait_seconds;
  MicroBatch out = make();
  waited_s_ += stream_.stats().wait_seconds - before;
  return out;
}

void MicroBatches::prepare() {
  at::cuda::CUDAEvent given;  // when the GPU will have done its work
  if (device_.is_cuda()) given.record(c10::cuda::getCurrentCUDAStream(device_.index()));
  const double before = stream_.stats().wait_seconds;
  try {
    prepared_ = make();
  } catch (...) {
    error_ = std::current_exception();
  }
  const bool hidden = device_.is_cuda() && !given.query();
  if (!hidden) waited_s_ += stream_.stats().wait_seconds - before;
}

}  // namespace vmoba::train
