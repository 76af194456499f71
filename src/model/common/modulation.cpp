#include "model/common/modulation.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include <cmath>

#include "model/common/linear.h"

namespace vmoba::model {

namespace {

// [B, S, E] -> [B, G, S/G, E], against which a row of each run broadcasts.
at::Tensor runs_of(const at::Tensor& x_BSE, const at::Tensor& rows_BGE) {
  return x_BSE.unflatten(1, {rows_BGE.size(1), -1});
}

}  // namespace

at::Tensor modulate(const at::Tensor& norm_BSE, const at::Tensor& scale_BGE, const at::Tensor& shift_BGE,
                    at::ScalarType dtype) {
  return (runs_of(norm_BSE, scale_BGE) * (scale_BGE.unsqueeze(2) + 1) + shift_BGE.unsqueeze(2)).flatten(1, 2).to(dtype);
}

at::Tensor add_gated(const at::Tensor& x_BSE, const at::Tensor& branch_BSE, const at::Tensor& gate_BGE) {
  const at::ScalarType precise = precise_type(x_BSE.scalar_type());
  const at::Tensor gated_BSE = (runs_of(branch_BSE.to(precise), gate_BGE) * gate_BGE.unsqueeze(2)).flatten(1, 2);
  return (x_BSE.to(precise) + gated_BSE).to(x_BSE.scalar_type());
}

at::Tensor timestep_embedding(const at::Tensor& timestep, int64_t channels) {
  const int64_t half = channels / 2;
  const at::Tensor exponent = at::arange(half, timestep.options()) * (-std::log(10000.0)) / double(half);
  // Rounded once: libraries' exp() in fp32 differ in the last bit from CPU to CPU, which angles in the thousands show.
  const at::Tensor frequency = exponent.to(at::kDouble).exp().to(exponent.scalar_type());
  const at::Tensor angle = timestep.unsqueeze(-1) * frequency;
  return at::cat({angle.cos(), angle.sin()}, -1);
}

}  // namespace vmoba::model
