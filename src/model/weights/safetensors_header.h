// The header of a safetensors file: parsed and validated from memory, and written, without any file access, so that
// it can be fuzzed quickly. Used by safetensors.cpp only.
//
// Layout: 8 bytes little-endian header length, that many bytes of JSON, then the data section. The rules are those of
// the reference implementation (safetensors/src/tensor.rs in huggingface/safetensors): the tensors tile the data
// section without holes or overlaps. Unlike it, unknown keys inside a tensor's entry are refused.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/weights/safetensors.h"

namespace vmoba::model {

struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  int64_t data_begin = 0;  // byte offset of the data section in the file
};

// Parses the header of a file of `file_bytes` bytes whose first bytes are `prefix` (at least the header, or all there
// is). Nothing is allocated beyond a small multiple of the header's true length. Throws Error(kInput) naming `origin`.
SafetensorsHeader parse_safetensors_header(std::string_view prefix, int64_t file_bytes, const std::string& origin);

// Length field and JSON, padded with spaces to 8 bytes, of tensors laid out one after the other in the given order.
// `begin` and `end` of the infos are set here. Throws Error(kRuntime) on names that are not UTF-8.
std::string make_safetensors_header(std::vector<std::pair<std::string, TensorInfo>>& tensors,
                                    const std::map<std::string, std::string>& metadata);

// Place of a dtype in the reference implementation's order, by which it sorts tensors (largest first); throws
// Error(kRuntime) for a dtype that safetensors cannot hold.
int safetensors_dtype_rank(at::ScalarType dtype);

}  // namespace vmoba::model
