// A file of named tensors, whatever its format: what weights are read through (weight_files.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/common/packing.h"

namespace vmoba::model {

struct TensorInfo {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;           // bytes from the start of the data section
  std::optional<Packing> packing = {};  // of a matrix whose rows are packed (common/packed.h); `dtype` stands for it
};

class TensorFile {
 public:
  virtual ~TensorFile() = default;
  // By name; known from the header alone.
  virtual const std::map<std::string, TensorInfo>& tensors() const = 0;
  // A CPU tensor over the file's bytes, which it keeps alive; do not write to it. Of a packed matrix uint8 [rows, bytes
  // of a row]. Throws Error(kInput) naming near names.
  virtual at::Tensor tensor(const std::string& name) const = 0;
  // Gives the memory of the pages that hold bytes [begin, end) of this tensor back; they are read from the file again
  // where they are needed.
  virtual void release(const std::string& name, int64_t begin, int64_t end) const = 0;
  // The same of the whole tensor.
  void release(const std::string& name) const;
};

// Opens `path`, a safetensors or GGUF file, and checks its header. Throws Error(kInput): expected, found, byte offset.
std::unique_ptr<TensorFile> open_tensor_file(const std::string& path);

}  // namespace vmoba::model
