// CLIP's text transformer (ViT-L/14 in HunyuanVideo): the pooled vector of a prompt, without the text projection. All
// is causal, so nothing behind the first end token is computed. Weights in fp32 (0.5 GB), owned here.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/common/encoder_block.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {

struct ClipTextShape {
  int64_t vocabulary = 0, width = 0, positions = 0, layers = 0, hidden = 0;
};

// Checks names and shapes without reading values; `key` names what the user gave. Throws Error(kInput).
ClipTextShape check_clip_text(const WeightFiles& files, const std::string& path, const std::string& key);

class ClipTextEncoder {
 public:
  ClipTextEncoder(const WeightFiles& files, const std::string& path, const std::string& key, at::Device device);

  const ClipTextShape& shape() const { return shape_; }
  // Token ids of one prompt up to its first end token, at most shape().positions -> [E], fp32.
  at::Tensor pooled(const std::vector<int64_t>& ids) const;

 private:
  ClipTextShape shape_;
  EncoderBlockOptions options_;
  at::Tensor embedding_, position_;
  std::vector<EncoderBlock> blocks_;
  EncoderNorm norm_;
};

}  // namespace vmoba::model
