#include "model/conditions.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
#include <map>
#include <string>

#include "core/check.h"
#include "model/common/to_device.h"

namespace vmoba::model {

TextEmbedding to_device(TextEmbedding text, at::Device device) {
  const at::Tensor length_B = text.length_B, glyph_length_B = text.glyph_length_B;
  visit_tensors(text, [&](const char*, at::Tensor& tensor) {
    if (tensor.defined()) tensor = to_device(tensor, device);
  });
  text.length_B = length_B;
  text.glyph_length_B = glyph_length_B;
  return text;
}

Conditions narrow_samples(Conditions conditions, int64_t first, int64_t count) {
  visit_tensors(conditions, [&](const char*, at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.narrow(0, first, count);
  });
  return conditions;
}

namespace {

TextEmbedding with_glyphs(TextEmbedding text, int64_t glyph_tokens) {
  if (!text.glyphs_BJU.defined()) return text;
  const int64_t missing = glyph_tokens - text.glyphs_BJU.size(1);
  text.glyphs_BJU = at::constant_pad_nd(text.glyphs_BJU, {0, 0, 0, missing});
  return text;
}

}  // namespace

TextEmbedding stack_samples(const std::vector<TextEmbedding>& parts) {
  int64_t glyph_tokens = 0;
  for (const TextEmbedding& part : parts)
    if (part.glyphs_BJU.defined()) glyph_tokens = std::max(glyph_tokens, part.glyphs_BJU.size(1));
  std::map<std::string, std::vector<at::Tensor>> tensors;
  for (const TextEmbedding& part : parts) {
    const TextEmbedding filled = with_glyphs(part, glyph_tokens);
    visit_tensors(filled, [&](const char* name, const at::Tensor& tensor) {
      if (tensor.defined()) tensors[name].push_back(tensor);
    });
  }
  TextEmbedding out;
  visit_tensors(out, [&](const char* name, at::Tensor& tensor) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) return;
    VMOBA_CHECK(found->second.size() == parts.size(), "expected '{}' of {} texts, found it of {}", name, parts.size(),
                found->second.size());
    tensor = at::cat(found->second);
  });
  return out;
}

}  // namespace vmoba::model
