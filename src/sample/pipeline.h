// Text (and an image) -> latents -> frames, with classifier-free guidance and one or more experts. The loop is that of
// diffusers' WanPipeline and WanImageToVideoPipeline. Owns nothing but references to the parts.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/expert_config.h"
#include "config/sample_config.h"
#include "model/codec.h"
#include "model/conditioning.h"
#include "model/dit.h"
#include "model/image_encoder.h"
#include "model/text_encoder.h"

namespace vmoba::sample {

// Borrowed. Only `dits` are always needed: the codec for images and frames, the text encoder for prompts that come as
// words, the image encoder for models with image tokens.
struct PipelineParts {
  std::vector<model::Dit*> dits;  // one for each expert, in their order
  model::CodecShape latents;
  const model::Codec* codec = nullptr;
  const model::TextEncoder* text = nullptr;
  const model::ImageEncoder* image = nullptr;
  attention::AttentionStats* stats = nullptr;  // collects how much was attended
};

// Tensors that stand for what would be drawn or encoded; undefined: none. Any floating-point type and device.
struct GivenTensors {
  at::Tensor latents_1CTHW;  // the starting noise
  model::TextEmbedding prompt, negative;
  at::Tensor image_1IM;
};

struct SampleRequest {
  std::string prompt;
  uint64_t seed = 0;
  int64_t index = 0;                         // number of the video, so that several of one seed differ
  at::Tensor first_CHW = {}, last_CHW = {};  // images, fp32 in [-1, 1] at the video's size; see model/conditioning.h
  GivenTensors given = {};
};

// Throws Error(kInput) where the sizes of a video do not fit the codec and, where it is not null, the model; the same
// for the scheduler's settings.
void check_sample(const SampleConfig& config, const model::CodecShape& codec, const model::Dit* dit);

class Pipeline {
 public:
  // `experts` says when each of parts.dits works; empty for a single one. `negative_prompt` of the configuration is
  // taken literally. Throws Error(kInput) where sizes do not fit.
  Pipeline(const PipelineParts& parts, const model::ModelConfig& model, const std::vector<ExpertConfig>& experts,
           const SampleConfig& config, const attention::AttentionConfig& attention, at::Device device);
  // Frames uint8 [3, F, H, W] on the CPU. Noise is a function of (seed, index). `progress(step, steps)` may be empty.
  at::Tensor generate(const SampleRequest& request, const std::function<void(int64_t, int64_t)>& progress);
  // The final latents [1, C, T, H, W] in fp32, before decoding.
  at::Tensor generate_latents(const SampleRequest& request, const std::function<void(int64_t, int64_t)>& progress);
  at::Tensor decode(const at::Tensor& latents_1CTHW) const;

 private:
  struct Words {
    model::TextEmbedding prompt, negative;  // the second undefined without guidance
  };

  model::TextEmbedding embed(const std::string& prompt, const model::TextEmbedding& given, const at::Tensor& first_BCHW,
                             const char* name) const;
  at::Tensor starting_latents(const SampleRequest& request) const;
  model::ImageCondition condition_of(const SampleRequest& request) const;
  // At timesteps()[step], towards the next one.
  at::Tensor velocity(int64_t step, const std::vector<double>& timesteps, const at::Tensor& latents_BCTHW,
                      const Words& words, const model::ImageCondition& condition) const;

  PipelineParts parts_;
  model::ModelConfig model_;
  std::vector<ExpertConfig> experts_;
  SampleConfig config_;
  attention::AttentionConfig attention_;
  at::ScalarType compute_dtype_;
  at::Device device_;
};

}  // namespace vmoba::sample
