// Parameters by specification: what a model has, how each is drawn, and how many numbers that makes. The values of a
// parameter depend on (seed, name) alone, not on order, threads or device.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/dit.h"

namespace vmoba::model {

struct Init {
  enum class Kind { kConstant, kNormal, kUniform } kind = Kind::kConstant;
  double scale = 0;  // the constant, the standard deviation, or the bound of [-scale, scale)
};
Init constant(double value);
Init normal(double deviation);
Init uniform(double bound);
Init xavier_uniform(int64_t fan_in, int64_t fan_out);  // Glorot and Bengio 2010: bound sqrt(6 / (in + out))

struct ParameterSpec {
  std::string name;  // in diffusers' layout
  std::vector<int64_t> shape;
  Init init;
  bool optional = false;  // files may lack it, and it is `init` then
  int64_t numel() const;
};

// An fp32 leaf tensor that requires grad.
at::Tensor draw_parameter(const ParameterSpec& spec, uint64_t seed, at::Device device);

}  // namespace vmoba::model
