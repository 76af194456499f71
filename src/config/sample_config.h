// The `sample:` group: videos that are made from prompts.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/config.h"
#include "model/dit.h"
#include "model/text_encoder.h"

namespace vmoba {

// The `sample:` group; also vmoba-sample's options.
struct SampleConfig {
  std::vector<std::string> prompts;  // validation prompts; empty: captions of the first clips
  std::string negative_prompt = "default";
  int64_t steps = 50;
  double guidance = 5.0;           // 1: no guidance (one model call per step)
  double embedded_guidance = 6.0;  // told to models that take a guidance scale as an input
  double shift = 5.0;
  std::string scheduler = "unipc";  // unipc | euler
  std::string schedule = "wan";     // wan | diffusers: noise levels of unipc
  int64_t seed = 0;
  int64_t frames = 81, height = 480, width = 832;
  double fps = 16;

  void visit(ConfigVisitor& v);
};

// Sets those of the keys that the architecture publishes other values of (model::PublishedSampling) and that `given`,
// the keys of the group that the user wrote, does not have.
void take_published_sampling(SampleConfig& config, const model::ModelConfig& model, const std::set<std::string>& given);

// The group's settings with `negative_prompt: default` replaced by what it stands for: the architecture's published
// one, or nothing where the built-in `hash` encoder could not read it.
SampleConfig resolved(const SampleConfig& config, const model::ModelConfig& model,
                      const model::TextEncoderConfig& text);

}  // namespace vmoba
