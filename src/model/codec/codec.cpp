#include "model/codec.h"

#include "core/registry.h"
#include "model/codec/dct_codec.h"
#include "model/codec/wan_vae.h"

namespace vmoba::model {
namespace {

struct CodecKind {
  CodecShape (*shape)(const CodecConfig&);
  std::unique_ptr<Codec> (*make)(const CodecConfig&, at::Device);
};

// One line per codec.
const Registry<CodecKind>& codecs() {
  static const Registry<CodecKind> table(
      "codec.type", {{"dct", {dct_codec_shape, make_dct_codec}}, {"wan_vae", {wan_vae_shape, make_wan_vae}}});
  return table;
}

}  // namespace

void CodecConfig::visit(ConfigVisitor& v) {
  v.field("type", type,
          "Video to latents and back. `dct`: training-free block transform, nothing to download; `wan_vae`: the "
          "pretrained VAE of Wan2.1 or Wan2.2.",
          one_of(codecs().names()));
  v.field("weights", weights,
          "`wan_vae`: a diffusers folder (`vae/` or the one above it) or a safetensors file in diffusers' or the "
          "original names. Empty for `dct`.");
  v.field("compute_dtype", compute_dtype, "`wan_vae`: type of its weights and activations.", one_of({"fp32", "bf16"}));
  v.field("tile_size", tile_size,
          "`wan_vae`: pictures wider or higher than this many pixels are worked on in tiles of this size: less memory, "
          "more time. 0: never.",
          at_least(0));
  v.field("tile_overlap", tile_overlap, "`wan_vae`: pixels that neighbouring tiles share and blend.", at_least(0));
}

CodecShape codec_shape(const CodecConfig& config) {
  return codecs().find(config.type).shape(config);
}

std::unique_ptr<Codec> make_codec(const CodecConfig& config, at::Device device) {
  return codecs().find(config.type).make(config, device);
}

}  // namespace vmoba::model
