// Operations of a recomputed body (common/recompute.h) whose results can be kept from its first run for its second.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "model/common/linear.h"
#include "model/common/recompute.h"

namespace vmoba::model {

struct ModelConfig;

// A map whose result is kept as `name`.
struct KeptMap {
  const Linear& map;
  const char* name;
};

// linear(x, map).
at::Tensor kept_linear(const ModelConfig& config, const at::Tensor& x, const KeptMap& map, Kept& kept);
// The same of several maps of one input. On a GPU the products of their gradients are summed within them.
std::vector<at::Tensor> kept_linears(const ModelConfig& config, const at::Tensor& x, const std::vector<KeptMap>& maps,
                                     Kept& kept);
// linear(gelu(x), map) with GELU in its tanh form. On a GPU its derivative is part of a product.
at::Tensor kept_gelu_linear(const ModelConfig& config, const at::Tensor& x, const KeptMap& map, Kept& kept);
// kept_gelu_linear(kept_linear(x, up), down).
at::Tensor kept_feed_forward(const ModelConfig& config, const at::Tensor& x, const KeptMap& up, const KeptMap& down,
                             Kept& kept);

// attend(tape): attention calls (attention/attention.h), whose results are kept as `name`.
at::Tensor kept_attention(const std::function<at::Tensor(attention::ResultTape*)>& attend, Kept& kept,
                          const std::string& name);

}  // namespace vmoba::model
