// Matrices whose values are packed in few bits, as GGUF files hold them (ggml-org/ggml, docs/gguf.md and the block
// layouts of ggml-common.h): runs of values of a row share scales. Unpacked where they are used, on any device.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/common/packing.h"

namespace vmoba::model {

// Values that share a block of bytes, and those bytes.
struct PackedBlock {
  int64_t values, bytes;
};
PackedBlock packed_block(Packing packing);

// Bytes of a row [values], a multiple of the block's.
int64_t packed_row_bytes(Packing packing, int64_t values);

// uint8 [rows, bytes of a row] -> [rows, values] in `dtype`; each value is computed in fp32 and rounded once.
at::Tensor unpacked(const at::Tensor& bytes, Packing packing, at::ScalarType dtype);

}  // namespace vmoba::model
