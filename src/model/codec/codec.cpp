#include "model/codec.h"

#include "core/registry.h"
#include "model/codec/dct_codec.h"

namespace vmoba::model {
namespace {

struct CodecKind {
  CodecShape (*shape)();
  std::unique_ptr<Codec> (*make)(const CodecConfig&, at::Device);
};

// One line per codec.
const Registry<CodecKind>& codecs() {
  static const Registry<CodecKind> table("codec.type", {{"dct", {dct_codec_shape, make_dct_codec}}});
  return table;
}

}  // namespace

void CodecConfig::visit(ConfigVisitor& v) {
  v.field("type", type, "Video to latents and back. `dct`: training-free block transform, nothing to download.",
          one_of(codecs().names()));
  v.field("weights", weights, "File of a pretrained codec; empty for `dct`.");
}

CodecShape codec_shape(const CodecConfig& config) {
  return codecs().find(config.type).shape();
}

std::unique_ptr<Codec> make_codec(const CodecConfig& config, at::Device device) {
  return codecs().find(config.type).make(config, device);
}

}  // namespace vmoba::model
