#include "model/common/rope.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/polar.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>

namespace vmoba::model {
namespace {

// Angles [positions, channels/2] in fp64: fp32 would lose digits at high positions.
at::Tensor axis_angles(int64_t positions, int64_t channels, double theta, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  const at::Tensor exponents = at::arange(0, channels, 2, options) / double(channels);
  return at::outer(at::arange(positions, options), at::pow(theta, exponents).reciprocal());
}

}  // namespace

RopeAxes sixths(int64_t head_dim) {
  const int64_t side = 2 * (head_dim / 6);
  return {head_dim - 2 * side, side, side};
}

at::Tensor rope_table(const attention::Grid& grid, const RopeAxes& axes, at::ScalarType precise, at::Device device) {
  const auto spread = [&](int64_t positions, int64_t channels, at::IntArrayRef shape) {
    return axis_angles(positions, channels, axes.theta, device).view(shape).expand({grid.t, grid.h, grid.w, -1});
  };
  const at::Tensor angles_THWP =
      at::cat({spread(grid.t, axes.t, {grid.t, 1, 1, -1}), spread(grid.h, axes.h, {1, grid.h, 1, -1}),
               spread(grid.w, axes.w, {1, 1, grid.w, -1})},
              -1);
  const at::Tensor angles_SP = angles_THWP.reshape({grid.tokens(), (axes.t + axes.h + axes.w) / 2});
  return at::polar(at::ones_like(angles_SP), angles_SP)
      .to(precise == at::kDouble ? at::kComplexDouble : at::kComplexFloat);
}

at::Tensor with_still_rows(const at::Tensor& table_SP, int64_t rows) {
  return at::cat({table_SP, at::ones({rows, table_SP.size(1)}, table_SP.options())});
}

at::Tensor apply_rope(const at::Tensor& x_BSND, const at::Tensor& table_SP) {
  const at::ScalarType precise = c10::toRealValueType(table_SP.scalar_type());
  const at::Tensor pairs_BSNP = at::view_as_complex(x_BSND.to(precise).unflatten(-1, {-1, 2}));
  return at::view_as_real(pairs_BSNP * table_SP.unsqueeze(1)).flatten(-2).to(x_BSND.scalar_type());
}

}  // namespace vmoba::model
