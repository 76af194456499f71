#include "model/common/fp8_factor.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "core/check.h"

namespace vmoba::model {
namespace {

using quantise::Operation;

// What is asked of fp8_rows().
struct RowsCall {
  std::vector<at::Tensor> parts;
  at::ScalarType format;
  Operation operation;
  at::Tensor before;
  at::Tensor* sums;
};

quantise::Format format_of(at::ScalarType format) {
  return format == at::kFloat8_e4m3fn ? quantise::Format::kE4m3 : quantise::Format::kE5m2;
}

double largest_of(at::ScalarType format) {
  return format == at::kFloat8_e4m3fn ? quantise::kLargestE4m3 : quantise::kLargestE5m2;
}

int64_t padded(int64_t rows) {
  return (rows + quantise::kMultiple - 1) / quantise::kMultiple * quantise::kMultiple;
}

// Contiguous and aligned to 16 bytes, as the kernels read it.
at::Tensor packed(const at::Tensor& x) {
  const at::Tensor out = x.contiguous();
  return reinterpret_cast<uintptr_t>(out.const_data_ptr()) % 16 == 0 ? out : out.clone();
}

cudaStream_t stream_of(const at::Tensor& x) {
  return c10::cuda::getCurrentCUDAStream(x.device().index()).stream();
}

void check_launch(cudaError_t error, const at::Tensor& x) {
  VMOBA_CHECK(error == cudaSuccess, "fp8: expected a matrix of {} x {} to be quantised, found: {}", x.size(0),
              x.size(1), cudaGetErrorString(error));
}

Fp8Rows rows_on_gpu(const RowsCall& asked) {
  const at::Tensor& first = asked.parts.front();
  const c10::cuda::CUDAGuard guard(first.device());
  const auto floats = first.options().dtype(at::kFloat);
  quantise::Rows call;
  call.rows = first.size(0), call.part_count = int32_t(asked.parts.size());
  call.format = format_of(asked.format), call.operation = asked.operation;
  VMOBA_CHECK(asked.parts.size() <= size_t(quantise::kMaxParts), "fp8: expected {} matrices side by side, found {}",
              quantise::kMaxParts, asked.parts.size());
  std::vector<at::Tensor> in;  // held until the launch
  int64_t width = 0;
  for (size_t i = 0; i < asked.parts.size(); ++i) {
    in.push_back(packed(asked.parts[i]));
    call.parts[i] = {in[i].const_data_ptr(), int32_t(in[i].size(1))};
    width += in[i].size(1);
  }
  const at::Tensor before = asked.before.defined() ? packed(asked.before) : at::Tensor();
  if (before.defined()) call.before = before.const_data_ptr();
  const Fp8Rows out{at::empty({call.rows, width}, first.options().dtype(asked.format)),
                    at::empty({call.rows, 1}, floats), at::empty({1, 1}, floats)};
  call.values = out.values.mutable_data_ptr();
  call.scale = out.scale.mutable_data_ptr<float>(), call.largest = out.largest.mutable_data_ptr<float>();
  at::Tensor workspace;
  if (asked.sums != nullptr) {
    *asked.sums = at::empty({width}, floats);
    workspace = at::empty({int64_t(quantise::sums_workspace_bytes(call.rows, width))}, floats.dtype(at::kByte));
    call.sums = asked.sums->mutable_data_ptr<float>(), call.workspace = workspace.mutable_data_ptr();
  }
  check_launch(quantise::quantise_rows(call, stream_of(first)), first);
  return out;
}

quantise::Transpose transpose_call(const at::Tensor& x, const Fp8Transposed& out) {
  return {x.size(0), int32_t(x.size(1)), format_of(out.values.scalar_type()), out.scale.const_data_ptr<float>(),
          out.values.mutable_data_ptr()};
}

at::Tensor operated(const at::Tensor& x, Operation operation, const at::Tensor& before) {
  if (operation == Operation::kGelu) return at::gelu(x, "tanh");
  if (operation == Operation::kGeluGradient) return at::gelu_backward(x, before, "tanh");
  return x;
}

// The least powers of two that are not below `least`, nor below kLeastScale.
at::Tensor powers_of_two(const at::Tensor& least) {
  constexpr int32_t kFraction = 0x7FFFFF;
  return (least.contiguous().view(at::kInt) + kFraction)
      .bitwise_and(~kFraction)
      .view(at::kFloat)
      .clamp_min(quantise::kLeastScale);
}

Fp8Rows rows_on_cpu(const RowsCall& asked) {
  const at::Tensor x = operated(at::cat(asked.parts, 1), asked.operation, asked.before).to(at::kFloat);
  const at::Tensor scale = powers_of_two(x.abs().amax(1, /*keepdim=*/true) / largest_of(asked.format));
  if (asked.sums != nullptr) *asked.sums = x.sum(0);
  return {(x * scale.reciprocal()).to(asked.format), scale, scale.amax().view({1, 1})};
}

Fp8Transposed transposed_on_cpu(const at::Tensor& x, const at::Tensor& scale, at::ScalarType format) {
  const at::Tensor rows = at::constant_pad_nd(x, {0, 0, 0, padded(x.size(0)) - x.size(0)});
  return {rows.t().contiguous().to(format), scale};
}

Fp8Rows rows_of(const RowsCall& asked) {
  return asked.parts.front().is_cuda() ? rows_on_gpu(asked) : rows_on_cpu(asked);
}

Fp8Transposed empty_transposed(const at::Tensor& x, const at::Tensor& scale, at::ScalarType format) {
  return {at::empty({x.size(1), padded(x.size(0))}, x.options().dtype(format)), scale};
}

}  // namespace

Fp8Rows fp8_rows(const std::vector<at::Tensor>& parts, at::ScalarType format, Operation operation) {
  return rows_of({parts, format, operation, {}, nullptr});
}

Fp8Rows fp8_rows(const std::vector<at::Tensor>& parts, at::ScalarType format, at::Tensor& sums) {
  return rows_of({parts, format, Operation::kNone, {}, &sums});
}

Fp8Rows fp8_rows_through_gelu(const at::Tensor& dy, const at::Tensor& before, at::ScalarType format, at::Tensor& sums) {
  return rows_of({{dy}, format, Operation::kGeluGradient, before, &sums});
}

Fp8Transposed fp8_transposed(const at::Tensor& x, const at::Tensor& scale, Operation operation) {
  constexpr at::ScalarType kFormat = at::kFloat8_e4m3fn;
  if (!x.is_cuda()) {
    return transposed_on_cpu(operated(x, operation, {}).to(at::kFloat) * scale.reciprocal(), scale, kFormat);
  }
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor in = packed(x);
  const Fp8Transposed out = empty_transposed(in, scale, kFormat);
  check_launch(quantise::quantise_transposed(transpose_call(in, out), in.const_data_ptr(), operation, stream_of(in)),
               in);
  return out;
}

Fp8Transposed fp8_transposed(const Fp8Rows& rows) {
  const at::ScalarType format = rows.values.scalar_type();
  if (!rows.values.is_cuda())
    return transposed_on_cpu(rows.values.to(at::kFloat) * (rows.scale / rows.largest), rows.largest, format);
  const c10::cuda::CUDAGuard guard(rows.values.device());
  const Fp8Transposed out = empty_transposed(rows.values, rows.largest, format);
  check_launch(quantise::transpose(transpose_call(rows.values, out), rows.values.const_data_ptr(),
                                   rows.scale.const_data_ptr<float>(), stream_of(rows.values)),
               rows.values);
  return out;
}

}  // namespace vmoba::model
