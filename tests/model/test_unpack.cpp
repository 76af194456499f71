// The kernels that bring packed and scaled weights into the type of the products, against the tensor operations. Cases
// with the tag [gpu] need a GPU; the others compute with the kernels' own functions on the CPU.
#include <ATen/ATen.h>

#include "model/common/linear.h"
#include "model/common/packed.h"
#include "model/kernels/unpack_values.cuh"
#include "model/packed_rows.h"
#include "support/catch.h"

using namespace vmoba;
using model::Packing;
using unpack::Format;

namespace {

constexpr Packing kPackings[] = {Packing::kQ8_0, Packing::kQ4_K, Packing::kQ5_K, Packing::kQ6_K};
// A row of each, several rows, more rows than threads.
const std::vector<std::vector<int64_t>> kShapes = {{1, 256}, {3, 512}, {300, 1536}};

template <Format format>
at::Tensor unpacked_here(const at::Tensor& rows, Packing packing) {
  const model::PackedBlock block = model::packed_block(packing);
  CHECK(block.values == unpack::values_of(format));
  CHECK(block.bytes == unpack::bytes_of(format));
  const int64_t blocks = rows.numel() / block.bytes;
  const at::Tensor out = at::empty({blocks, block.values}, at::kFloat);
  for (int64_t i = 0; i < blocks; ++i)
    for (int first = 0; first < block.values; first += unpack::kEight)
      unpack::eight_of<format>(rows.const_data_ptr<uint8_t>() + i * block.bytes, first,
                               out.data_ptr<float>() + i * block.values + first);
  return out.view({rows.size(0), -1});
}

at::Tensor unpacked_here(const at::Tensor& rows, Packing packing) {
  switch (packing) {
    case Packing::kQ8_0:
      return unpacked_here<Format::kQ8_0>(rows, packing);
    case Packing::kQ4_K:
      return unpacked_here<Format::kQ4_K>(rows, packing);
    case Packing::kQ5_K:
      return unpacked_here<Format::kQ5_K>(rows, packing);
    case Packing::kQ6_K:
      break;
  }
  return unpacked_here<Format::kQ6_K>(rows, packing);
}

// Every number of e4m3 that is one, many times.
at::Tensor fp8_matrix(at::IntArrayRef shape) {
  const at::Tensor bytes = at::arange(c10::multiply_integers(shape), at::kLong).remainder(251).to(at::kByte);
  return at::where(bytes.bitwise_and(127) == 127, at::zeros_like(bytes), bytes).view(at::kFloat8_e4m3fn).view(shape);
}

// One scale, one of each row, one of each half of a row.
std::vector<at::Tensor> scales_of(const at::Tensor& weight) {
  at::manual_seed(3);
  const int64_t rows = weight.size(0);
  return {at::rand({1}), at::rand({rows}), at::rand({rows, 1}), at::rand({rows, 2, 1})};
}

}  // namespace

TEST_CASE("the kernels' values of packed blocks are those of the tensor operations, bit for bit") {
  for (const Packing packing : kPackings) {
    const at::Tensor rows = test::random_rows(packing, {5, 1024}, 7);
    CHECK(at::equal(unpacked_here(rows, packing), model::unpacked(rows, packing, at::kFloat)));
  }
}

TEST_CASE("the kernels' values of fp8 with scales are those of the tensor operations, bit for bit") {
  const at::Tensor weight = fp8_matrix({6, 128});
  for (const at::Tensor& scale : scales_of(weight)) {
    const at::Tensor out = at::empty(weight.sizes(), at::kFloat);
    const int64_t run = weight.numel() / scale.numel();
    for (int64_t i = 0; i < weight.numel(); i += unpack::kEight)
      unpack::eight_of_fp8(static_cast<const uint8_t*>(weight.const_data_ptr()) + i,
                           scale.const_data_ptr<float>()[i / run], out.data_ptr<float>() + i);
    CHECK(at::equal(out, model::scaled_weight(weight, scale, at::kFloat)));
  }
}

TEST_CASE("a GPU unpacks the CPU's bits", "[gpu]") {
  for (const Packing packing : kPackings)
    for (const std::vector<int64_t>& shape : kShapes)
      for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
        const at::Tensor rows = test::random_rows(packing, shape, 7);
        const at::Tensor there = model::unpacked(rows.cuda(), packing, dtype);
        CHECK(there.is_cuda());
        CHECK(at::equal(there.cpu(), model::unpacked(rows, packing, dtype)));
      }
  // Rows that do not begin where a word does.
  const at::Tensor rows = test::random_rows(Packing::kQ6_K, {4, 256}, 9);
  CHECK(at::equal(model::unpacked(rows.cuda().narrow(0, 1, 3), Packing::kQ6_K, at::kBFloat16).cpu(),
                  model::unpacked(rows.narrow(0, 1, 3), Packing::kQ6_K, at::kBFloat16)));
}

TEST_CASE("a GPU scales fp8 to the CPU's bits", "[gpu]") {
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{6, 128}, {257, 1536}, {3, 20}})
    for (const at::Tensor& scale : scales_of(fp8_matrix(shape)))
      for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
        const at::Tensor weight = fp8_matrix(shape);
        const at::Tensor there = model::scaled_weight(weight.cuda(), scale.cuda(), dtype);
        CHECK(there.is_cuda());
        CHECK(at::equal(there.cpu(), model::scaled_weight(weight, scale, dtype)));
      }
}
