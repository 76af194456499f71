#include "model/text_encoder.h"

#include "core/registry.h"
#include "model/text/hash_text_encoder.h"

namespace vmoba::model {
namespace {

using MakeTextEncoder = std::unique_ptr<TextEncoder> (*)(const TextEncoderConfig&, at::Device);

// One line per text encoder.
const Registry<MakeTextEncoder>& text_encoders() {
  static const Registry<MakeTextEncoder> table("text.type", {{"hash", make_hash_text_encoder}});
  return table;
}

}  // namespace

void TextEncoderConfig::visit(ConfigVisitor& v) {
  v.field("type", type, "Captions to embeddings. `hash`: deterministic hashed words, nothing to download.",
          one_of(text_encoders().names()));
  v.field("weights", weights, "File or folder of a pretrained encoder; empty for `hash`.");
  v.field("max_tokens", max_tokens, "Tokens of a prompt; longer ones are cut, shorter ones padded with zeros.",
          between(1, 4096));
  v.field("dim", dim, "Width of the embeddings of `hash`; must equal model.text_dim.", between(1, 65536));
}

std::unique_ptr<TextEncoder> make_text_encoder(const TextEncoderConfig& config, at::Device device) {
  return text_encoders().find(config.type)(config, device);
}

}  // namespace vmoba::model
