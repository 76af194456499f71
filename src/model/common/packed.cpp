// Shape letters: R rows, N blocks of a row, C values of a block.
#include "model/common/packed.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "core/check.h"
#include "model/kernels/unpack.h"

namespace vmoba::model {
namespace {

constexpr int64_t kValuesAtOnce = 1 << 24;  // what is unpacked in fp32 at a time

at::Tensor shifted(const at::Tensor& bytes, int64_t bits) {
  return bits == 0 ? bytes : at::bitwise_right_shift(bytes, bits);
}

at::Tensor bits_of(const at::Tensor& bytes, int64_t first, int64_t mask) {
  return at::bitwise_and(shifted(bytes, first), mask);
}

// A half-precision number of each block, in fp32: [R, N, 1].
at::Tensor half_at(const at::Tensor& blocks_RNC, int64_t byte) {
  return blocks_RNC.narrow(2, byte, 2).contiguous().view(at::kHalf).to(at::kFloat);
}

// Both halves of bytes [.., n], as 2 n runs: the low ones of a run of `run` bytes, then the high ones.
at::Tensor nibbles(const at::Tensor& bytes, int64_t run) {
  const at::Tensor runs = bytes.unflatten(-1, {-1, run});
  return at::stack({bits_of(runs, 0, 15), bits_of(runs, 4, 15)}, -2).flatten(-3, -2);
}

at::Tensor unpack_q8_0(const at::Tensor& blocks_RNC) {
  const at::Tensor values = blocks_RNC.narrow(2, 2, 32).contiguous().view(at::kChar).to(at::kFloat);
  return half_at(blocks_RNC, 0) * values;
}

// Eight runs of 32 values with a scale and a minimum of six bits each.
at::Tensor with_minima(const at::Tensor& blocks_RNC, const at::Tensor& values_RN8X) {
  const at::Tensor packed = blocks_RNC.narrow(2, 4, 12);
  const at::Tensor low = packed.narrow(2, 0, 4), middle = packed.narrow(2, 4, 4), high = packed.narrow(2, 8, 4);
  const auto top = [](const at::Tensor& bytes) { return at::bitwise_left_shift(shifted(bytes, 6), 4); };
  const at::Tensor scale = at::cat({bits_of(low, 0, 63), at::bitwise_or(bits_of(high, 0, 15), top(low))}, 2);
  const at::Tensor least = at::cat({bits_of(middle, 0, 63), at::bitwise_or(shifted(high, 4), top(middle))}, 2);
  const at::Tensor factor = half_at(blocks_RNC, 0) * scale.to(at::kFloat);
  const at::Tensor minimum = half_at(blocks_RNC, 2) * least.to(at::kFloat);
  return (factor.unsqueeze(3) * values_RN8X.to(at::kFloat)).sub_(minimum.unsqueeze(3));
}

at::Tensor unpack_q4_k(const at::Tensor& blocks_RNC) {
  return with_minima(blocks_RNC, nibbles(blocks_RNC.narrow(2, 16, 128), 32));
}

at::Tensor unpack_q5_k(const at::Tensor& blocks_RNC) {
  const at::Tensor high = blocks_RNC.narrow(2, 16, 32);
  std::vector<at::Tensor> fifth;
  for (int64_t run = 0; run < 8; ++run) fifth.push_back(bits_of(high, run, 1));
  const at::Tensor values = nibbles(blocks_RNC.narrow(2, 48, 128), 32);
  return with_minima(blocks_RNC, at::bitwise_or(values, at::bitwise_left_shift(at::stack(fifth, 2), 4)));
}

// Sixteen runs of 16 values with a scale of eight bits each.
at::Tensor unpack_q6_k(const at::Tensor& blocks_RNC) {
  const at::Tensor low = blocks_RNC.narrow(2, 0, 128).unflatten(2, {2, 64});
  const at::Tensor high = blocks_RNC.narrow(2, 128, 64).unflatten(2, {2, 32});
  std::vector<at::Tensor> upper;
  for (int64_t quarter = 0; quarter < 4; ++quarter) upper.push_back(bits_of(high, 2 * quarter, 3));
  const at::Tensor lower = at::cat({bits_of(low, 0, 15), shifted(low, 4)}, 3).unflatten(3, {4, 32});
  const at::Tensor values = at::bitwise_or(lower, at::bitwise_left_shift(at::stack(upper, 3), 4));
  const at::Tensor scale = blocks_RNC.narrow(2, 192, 16).contiguous().view(at::kChar).to(at::kFloat);
  const at::Tensor factor = (half_at(blocks_RNC, 208) * scale).unsqueeze(3);
  return factor * (values.flatten(2).unflatten(2, {16, 16}).to(at::kFloat) - 32);
}

at::Tensor unpack_blocks(Packing packing, const at::Tensor& blocks_RNC) {
  switch (packing) {
    case Packing::kQ8_0:
      return unpack_q8_0(blocks_RNC);
    case Packing::kQ4_K:
      return unpack_q4_k(blocks_RNC);
    case Packing::kQ5_K:
      return unpack_q5_k(blocks_RNC);
    case Packing::kQ6_K:
      break;
  }
  return unpack_q6_k(blocks_RNC);
}

unpack::Format format_of(Packing packing) {
  switch (packing) {
    case Packing::kQ8_0:
      return unpack::Format::kQ8_0;
    case Packing::kQ4_K:
      return unpack::Format::kQ4_K;
    case Packing::kQ5_K:
      return unpack::Format::kQ5_K;
    case Packing::kQ6_K:
      break;
  }
  return unpack::Format::kQ6_K;
}

// In one kernel.
void unpack_there(const at::Tensor& bytes, Packing packing, const at::Tensor& out) {
  const c10::cuda::CUDAGuard guard(out.device());
  const unpack::Packed call{format_of(packing), bytes.const_data_ptr<uint8_t>(),
                            bytes.numel() / packed_block(packing).bytes, out.mutable_data_ptr(),
                            out.scalar_type() == at::kBFloat16};
  const cudaError_t error = unpack::unpack(call, c10::cuda::getCurrentCUDAStream(out.device().index()).stream());
  VMOBA_CHECK(error == cudaSuccess, "expected a kernel to unpack weights, found: {}", cudaGetErrorString(error));
}

}  // namespace

PackedBlock packed_block(Packing packing) {
  switch (packing) {
    case Packing::kQ8_0:
      return {32, 34};
    case Packing::kQ4_K:
      return {256, 144};
    case Packing::kQ5_K:
      return {256, 176};
    case Packing::kQ6_K:
      break;
  }
  return {256, 210};
}

int64_t packed_row_bytes(Packing packing, int64_t values) {
  const PackedBlock block = packed_block(packing);
  VMOBA_CHECK_INPUT(values % block.values == 0, "expected rows of a multiple of {} packed values, found {}",
                    block.values, values);
  return values / block.values * block.bytes;
}

at::Tensor unpacked(const at::Tensor& bytes, Packing packing, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  const PackedBlock block = packed_block(packing);
  VMOBA_CHECK(bytes.dim() == 2 && bytes.scalar_type() == at::kByte && bytes.size(1) % block.bytes == 0,
              "expected packed rows of a multiple of {} bytes", block.bytes);
  const int64_t rows = bytes.size(0), values = bytes.size(1) / block.bytes * block.values;
  const at::Tensor out = at::empty({rows, values}, bytes.options().dtype(dtype));
  if (bytes.is_cuda() && bytes.is_contiguous() && (dtype == at::kBFloat16 || dtype == at::kFloat)) {
    unpack_there(bytes, packing, out);
    return out;
  }
  const int64_t step = std::max<int64_t>(1, kValuesAtOnce / std::max<int64_t>(1, values));
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    const at::Tensor blocks_RNC = bytes.narrow(0, first, count).view({count, -1, block.bytes});
    out.narrow(0, first, count).copy_(unpack_blocks(packing, blocks_RNC).view({count, values}));
  }
  return out;
}

}  // namespace vmoba::model
