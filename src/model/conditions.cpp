#include "model/conditions.h"

#include <ATen/ops/cat.h>

#include <map>
#include <string>

#include "core/check.h"
#include "model/common/to_device.h"

namespace vmoba::model {

TextEmbedding to_device(TextEmbedding text, at::Device device) {
  const at::Tensor length_B = text.length_B;
  visit_tensors(text, [&](const char*, at::Tensor& tensor) {
    if (tensor.defined()) tensor = to_device(tensor, device);
  });
  text.length_B = length_B;
  return text;
}

Conditions narrow_samples(Conditions conditions, int64_t first, int64_t count) {
  visit_tensors(conditions, [&](const char*, at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.narrow(0, first, count);
  });
  return conditions;
}

TextEmbedding stack_samples(const std::vector<TextEmbedding>& parts) {
  std::map<std::string, std::vector<at::Tensor>> tensors;
  for (const TextEmbedding& part : parts) {
    visit_tensors(part, [&](const char* name, const at::Tensor& tensor) {
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
