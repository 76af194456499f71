// CLIP's vision transformer (Radford et al. 2103.00020): the hidden states before its last block, class token first, as
// Wan's image-to-video pipeline and LLaVA take them. Owns its weights, in fp32.
//
// Shape letters: B images, S tokens, E width.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/common/encoder_block.h"
#include "model/weights/encoder_weights.h"

namespace vmoba::model {

struct ClipVisionOptions {
  EncoderBlockOptions block;
  int64_t pixels = 0;  // a side of its images; 0: what its positions say
};

// `options` with what a config.json in the folder of `weights` says (its vision_config, where it has one). A
// config.json must state the heads, unless `heads_known`. Throws Error(kInput).
ClipVisionOptions read_clip_vision_options(const EncoderWeights& weights, ClipVisionOptions options, bool heads_known);

class ClipVision {
 public:
  // `weights`: names begin with "embeddings." and "encoder." behind their prefix. The last block is never read.
  ClipVision(const EncoderWeights& weights, const ClipVisionOptions& options, at::Device device);

  int64_t dim() const { return dim_; }
  int64_t tokens() const { return tokens_; }  // with the class token
  // Images [B, 3, H, W], fp32 RGB in [-1, 1] -> [B, S, E], fp32.
  at::Tensor encode(const at::Tensor& images_BCHW) const;

 private:
  ClipVisionOptions options_;
  at::Device device_;
  int64_t dim_ = 0, tokens_ = 0, patch_ = 0;
  at::Tensor patch_embedding_, class_E_, position_SE_;
  EncoderNorm norm_;
  std::vector<EncoderBlock> blocks_;
};

}  // namespace vmoba::model
