#include "model/weights/tensor_file.h"

#include "model/weights/gguf.h"
#include "model/weights/safetensors.h"

namespace vmoba::model {

void TensorFile::release(const std::string& name) const {
  const TensorInfo& info = tensors().at(name);
  release(name, 0, info.end - info.begin);
}

std::unique_ptr<TensorFile> open_tensor_file(const std::string& path) {
  if (is_gguf(path)) return std::make_unique<GgufFile>(path);
  return std::make_unique<SafetensorsFile>(path);
}

}  // namespace vmoba::model
