// `codec.type: taehv`: tiny autoencoders for fast previews. Read are the community's files for latents of large VAEs
// (taew2_1 of Wan2.1, taehv of HunyuanVideo and others of their architecture). Widths and strides come from the shapes
// of the tensors; latents are normalised ones, as the large VAEs' codecs give them.
#pragma once
#include <memory>

#include "model/codec.h"

namespace vmoba::model {

CodecShape taehv_shape(const CodecConfig& config);
std::unique_ptr<Codec> make_taehv(const CodecConfig& config, at::Device device);

}  // namespace vmoba::model
