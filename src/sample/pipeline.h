// Text -> latents -> frames, with classifier-free guidance. Owns nothing but references to model, codec and encoder.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "core/config.h"
#include "model/codec.h"
#include "model/dit.h"
#include "model/text_encoder.h"

namespace vmoba::sample {

// The `sample:` group; also vmoba-sample's options.
struct SampleConfig {
  std::vector<std::string> prompts;  // validation prompts; empty: captions of the first clips
  std::string negative_prompt;
  int64_t steps = 50;
  double guidance = 5.0;  // 1: no guidance (one model call per step)
  double shift = 5.0;
  std::string scheduler = "unipc";  // unipc | euler
  int64_t seed = 0;
  int64_t frames = 81, height = 480, width = 832;
  double fps = 16;

  void visit(ConfigVisitor& v);
};

struct SampleRequest {
  std::string prompt;
  uint64_t seed = 0;
  int64_t index = 0;  // number of the video, so that several of one seed differ
};

class Pipeline {
 public:
  Pipeline(model::Dit& dit, const model::Codec& codec, const model::TextEncoder& text, const SampleConfig& config,
           const attention::AttentionConfig& attention, at::ScalarType compute_dtype, at::Device device);
  // Frames uint8 [3, F, H, W] on the CPU. Noise is a function of (seed, index). `progress(step, steps)` may be empty.
  at::Tensor generate(const SampleRequest& request, const std::function<void(int64_t, int64_t)>& progress);
  // The final latents [1, C, T, H, W] in fp32, before decoding.
  at::Tensor generate_latents(const SampleRequest& request, const std::function<void(int64_t, int64_t)>& progress);

 private:
  model::Dit& dit_;
  const model::Codec& codec_;
  const model::TextEncoder& text_;
  SampleConfig config_;
  attention::AttentionConfig attention_;
  at::ScalarType compute_dtype_;
  at::Device device_;
};

}  // namespace vmoba::sample
