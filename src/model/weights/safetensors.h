// safetensors files (https://github.com/huggingface/safetensors): the only format read and written here.
//
// Reading maps the file; sizes are checked against the file before anything is allocated, so a header that claims
// 2^60 bytes is refused. Tensors are views of the mapping (kept alive by them) until copied.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/weights/tensor_file.h"

namespace vmoba::model {

class SafetensorsFile : public TensorFile {
 public:
  // Maps and validates `path`. Throws Error(kInput): expected, found, byte offset.
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile() override;
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::map<std::string, TensorInfo>& tensors() const override;
  const std::map<std::string, std::string>& metadata() const;
  bool contains(const std::string& name) const;
  at::Tensor tensor(const std::string& name) const override;
  // A copy, read from the file anew. Throws Error(kInput) where the file was cut short since it was opened.
  at::Tensor read(const std::string& name) const;
  using TensorFile::release;
  void release(const std::string& name, int64_t begin, int64_t end) const override;

 private:
  struct Mapping;
  const TensorInfo& info(const std::string& name) const;

  std::shared_ptr<Mapping> mapping_;
};

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

// A tensor that is made when it is written.
struct TensorToWrite {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  std::function<at::Tensor()> read;

  int64_t bytes() const;
};
std::vector<TensorToWrite> tensors_to_write(const std::vector<NamedTensor>& tensors);

// A file before it is written: its header, and where each tensor's bytes begin and end, from the start of the file.
struct SafetensorsLayout {
  std::string header;
  std::map<std::string, TensorInfo> tensors;
  int64_t file_bytes = 0;
};
// As write_safetensors lays tensors out; reads none. Names unique.
SafetensorsLayout safetensors_layout(const std::string& path, const std::vector<TensorToWrite>& tensors,
                                     const std::map<std::string, std::string>& metadata);

// Writes temporary name, fsync, rename. Tensors of any device; names unique; one is held at a time. Returns the
// checksum of each tensor's bytes. Throws Error(kRuntime) on I/O failure, leaving what was at `path` before.
std::map<std::string, uint64_t> write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                                                  const std::map<std::string, std::string>& metadata = {});
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// A 64-bit hash of bytes and their order: it finds damage, it is no signature.
uint64_t bytes_checksum(const void* bytes, size_t count);

}  // namespace vmoba::model
