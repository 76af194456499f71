// GGUF files (ggml-org/ggml, docs/gguf.md), version 2 and 3, little-endian: those of transformers, whose tensors carry
// the names of the original files (city96's). Read only.
//
// Reading maps the file. Everything that the header claims is checked against the file's size before memory is taken
// for it. Shapes are those of the values, the slowest dimension first: the header has them the other way round, and of
// more than four dimensions beside it (comfy.gguf.orig_shape.<name>).
#pragma once
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "model/weights/tensor_file.h"

namespace vmoba::model {

// Whether the file begins as a GGUF file does.
bool is_gguf(const std::string& path);

struct GgufHeader {
  std::map<std::string, TensorInfo> tensors;
  int64_t data_begin = 0;  // byte offset of the data section in the file
};

// Parses the header of a file of `file_bytes` bytes, of which `bytes` are the beginning (at least the header, or all
// there is). Throws Error(kInput) naming `origin`, what was expected and the byte.
GgufHeader parse_gguf_header(std::string_view bytes, int64_t file_bytes, const std::string& origin);

class GgufFile final : public TensorFile {
 public:
  // Maps and validates `path`. Throws Error(kInput).
  explicit GgufFile(const std::string& path);
  ~GgufFile() override;

  const std::map<std::string, TensorInfo>& tensors() const override;
  at::Tensor tensor(const std::string& name) const override;
  using TensorFile::release;
  void release(const std::string& name, int64_t begin, int64_t end) const override;

 private:
  struct Mapping;
  std::shared_ptr<Mapping> mapping_;
};

}  // namespace vmoba::model
