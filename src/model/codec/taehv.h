// `codec.type: taehv`: tiny autoencoders for fast previews. Read are the community's files for latents of large VAEs
// (taew2_1 of Wan2.1, taehv of HunyuanVideo and others of their architecture), and those of vmoba-train-codec. Widths
// and strides come from the shapes of the tensors; latents are normalised ones, as the large VAEs' codecs give them.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "model/codec.h"
#include "model/codec/codec_weights.h"
#include "model/codec/taehv_config.h"

namespace vmoba::model {

CodecShape taehv_shape(const CodecConfig& config);
std::unique_ptr<Codec> make_taehv(const CodecConfig& config, at::Device device);

// Of weights in memory: `source` gives them, of `dtype`, on `device`.
std::unique_ptr<Codec> make_taehv(const TaehvConfig& config, const TensorSource& source, at::ScalarType dtype,
                                  at::Device device);

// What a file says beside its tensors (safetensors metadata).
std::map<std::string, std::string> taehv_metadata(const TaehvConfig& config);

}  // namespace vmoba::model
