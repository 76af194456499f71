// Linear maps whose products have factors in fp8 (model.linear_compute): inputs and weights in e4m3, gradients in e5m2
// (common/fp8_factor.h); sums in fp32. On a GPU through its tensor cores; on a CPU the same values are multiplied in
// fp32 (docs/numerics.md).
//
// Weights and biases are those of the parameters; they enter as they are in the dtype of x, and their gradients have
// the parameters' dtype. Shape letters: R rows, I inputs, O outputs, F width of a feed-forward.
#pragma once
#include <ATen/core/Tensor.h>

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace vmoba::model {

struct Linear;
struct ModelConfig;
struct Parameter;

// Whether the configuration wants fp8 in a block's map of this name.
bool asks_for_fp8(const ModelConfig& config, std::string_view name);

// Whether a block's map, called `name`, computes in fp8. Throws Error(kInput) where it should and this GPU cannot.
bool takes_fp8(const ModelConfig& config, const at::Tensor& x, const Linear& map, std::string_view name);

// Names of the `parameters` that enter products as fp8 factors alone: weights of the blocks' maps that take fp8, where
// all of these do.
std::set<std::string> fp8_weights(const ModelConfig& config, const std::vector<Parameter>& parameters);

// What a product leaves beside its results for the same product in a second run: the largest scale of its input's rows.
// In a second run `results` are known (defined); a first run leaves `largest`.
struct Fp8Known {
  std::vector<at::Tensor> results;
  at::Tensor largest;
};

// x W^T + bias of several maps of one input [..., I], in the dtype of x; differentiable once. Results that are known
// are taken.
std::vector<at::Tensor> fp8_linears(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                    const std::vector<at::Tensor>& biases, Fp8Known& known);

// A feed-forward's two maps with GELU in its tanh form between them. `up` has one result, which is left in it, `down`
// one or, unknown, none.
struct Fp8FeedForward {
  at::Tensor up_weight, up_bias, down_weight, down_bias;
};
at::Tensor fp8_feed_forward(const at::Tensor& x, const Fp8FeedForward& maps, Fp8Known& up, Fp8Known& down);

}  // namespace vmoba::model
