// HunyuanVideo's transformer, 1.0 (Kong et al., arXiv 2412.03603; Tencent-Hunyuan/HunyuanVideo, hyvideo/modules;
// diffusers' HunyuanVideoTransformer3DModel) and 1.5 (Tencent-Hunyuan/HunyuanVideo-1.5;
// HunyuanVideo15Transformer3DModel) with VMoBA or full attention of video and text together in every layer.
#pragma once
#include <memory>

#include "model/dit.h"

namespace vmoba::model {

// `store` may be null.
std::unique_ptr<Dit> make_hunyuan_dit(const ModelConfig& config, const attention::AttentionConfig& attention,
                                      uint64_t seed, at::Device device, WeightStore* store);

}  // namespace vmoba::model
