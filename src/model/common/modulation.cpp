#include "model/common/modulation.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include <cmath>

#include "model/common/linear.h"

namespace vmoba::model {

at::Tensor modulate(const at::Tensor& norm_BSE, const at::Tensor& scale_B1E, const at::Tensor& shift_B1E,
                    at::ScalarType dtype) {
  return (norm_BSE * (scale_B1E + 1) + shift_B1E).to(dtype);
}

at::Tensor add_gated(const at::Tensor& x_BSE, const at::Tensor& branch_BSE, const at::Tensor& gate_B1E) {
  const at::ScalarType precise = precise_type(x_BSE.scalar_type());
  return (x_BSE.to(precise) + branch_BSE.to(precise) * gate_B1E).to(x_BSE.scalar_type());
}

at::Tensor timestep_embedding(const at::Tensor& timestep_B, int64_t channels) {
  const int64_t half = channels / 2;
  const at::Tensor exponent = at::arange(half, timestep_B.options()) * (-std::log(10000.0)) / double(half);
  const at::Tensor angle = timestep_B.unsqueeze(1) * exponent.exp().unsqueeze(0);
  return at::cat({angle.cos(), angle.sin()}, 1);
}

}  // namespace vmoba::model
