#include "train/batch.h"

#include <ATen/ATen.h>

#include <utility>

#include "core/random.h"

namespace vmoba::train {
namespace {

at::Tensor draw_given_frames(const FlowConfig& config, uint64_t seed, const std::vector<int64_t>& samples,
                             bool possible) {
  at::Tensor given_B = at::zeros({int64_t(samples.size())}, at::kBool);
  for (size_t i = 0; possible && i < samples.size(); ++i)
    given_B[int64_t(i)] = RandomStream(seed, "first_frame", uint64_t(samples[i])).uniform() < config.first_frame_rate;
  return given_B;
}

}  // namespace

EncodedBatch encode_videos(const model::ModelConfig& model, const model::Codec& codec, const model::ImageEncoder* image,
                           const at::Tensor& video_BCFHW) {
  EncodedBatch out;
  out.x0_BCTHW = codec.encode(video_BCFHW);
  const int64_t frames = video_BCFHW.size(2);
  if (model.task == "ti2v") {  // the codec is causal: the first latent frame is that of the first frame alone
    out.condition = model::condition_of_latents(model, out.x0_BCTHW.slice(2, 0, 1));
    if (model.image_dim > 0)
      out.condition.tokens_BIM = model::encode_image_tokens(model, image, video_BCFHW.select(2, 0));
  } else {
    out.condition = model::encode_condition(model, codec, image, video_BCFHW.select(2, 0),
                                            video_BCFHW.select(2, frames - 1), frames);
  }
  return out;
}

TrainingBatch make_batch(const FlowConfig& config, uint64_t seed, const std::vector<int64_t>& samples,
                         const EncodedBatch& encoded) {
  model::ImageCondition condition = encoded.condition;
  if (condition.first_BC1HW.defined())
    condition.given_B = draw_given_frames(config, seed, samples, encoded.x0_BCTHW.size(2) > 1);
  return conditioned_batch(encoded, condition, make_noisy(config, seed, samples, encoded.x0_BCTHW));
}

void tell_numbers(const model::ModelConfig& model, const FlowConfig& config, TrainingBatch& batch) {
  model::tell_guidance(model, config.embedded_guidance, batch.input);
  model::tell_next_timestep(model, batch.noisy.timestep_B, batch.input);
}

TrainingBatch conditioned_batch(const EncodedBatch& encoded, const model::ImageCondition& condition, NoisyBatch noisy) {
  TrainingBatch out;
  out.noisy = std::move(noisy);
  out.noisy.made_BT = model::made_frames(encoded.x0_BCTHW, condition);
  out.input = model::conditioned_input(out.noisy.latents_BCTHW, out.noisy.timestep_B, encoded.text, condition);
  return out;
}

}  // namespace vmoba::train
