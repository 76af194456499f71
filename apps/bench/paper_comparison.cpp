#include "apps/bench/paper_comparison.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "attention/attention.h"
#include "core/check.h"

namespace vmoba::bench {
namespace {

// Wan2.1-1.3B.
constexpr int64_t kHeads = 12, kHeadDim = 128, kWidth = kHeads * kHeadDim, kHidden = 8960, kTextTokens = 512;

struct Ratio {
  double flops = 0, latency = 0;
};

std::string line(const std::string& name, double density, const Ratio& ratio) {
  return fmt::format("{:<16} {:>8.3f} {:>13.2f} {:>15.2f}\n", name, density, ratio.flops, ratio.latency);
}

}  // namespace

double layer_rest_flops(int64_t tokens) {
  const double s = double(tokens), e = double(kWidth), f = double(kHidden), x = double(kTextTokens);
  const double projections = 8 * s * e * e, feed_forward = 4 * s * e * f;
  const double cross = 4 * s * e * e + 4 * x * e * e + 4 * s * x * e;
  return projections + feed_forward + cross;
}

LayerRest measure_layer_rest(int64_t tokens, int64_t repeats) {
  const auto options = at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor x = at::randn({1, tokens, kWidth}, options), text = at::randn({1, kTextTokens, kWidth}, options);
  const auto weight = [&](int64_t out, int64_t in) { return at::randn({out, in}, options) * 0.02; };
  const at::Tensor square = weight(kWidth, kWidth), up = weight(kHidden, kWidth), down = weight(kWidth, kHidden);
  const auto heads = [](const at::Tensor& y) { return y.unflatten(2, {kHeads, kHeadDim}); };
  const auto layer = [&] {
    for (int i = 0; i < 4; ++i) at::linear(x, square);  // q, k, v, out
    const at::Tensor cross = attention::cross_attention(heads(at::linear(x, square)), heads(at::linear(text, square)),
                                                        heads(at::linear(text, square)));
    at::linear(cross.flatten(2), square);
    at::linear(at::gelu(at::linear(x, up), "tanh"), down);
  };
  return {layer_rest_flops(tokens), median_milliseconds(layer, repeats)};
}

std::string paper_table(const std::vector<BenchCase>& cases, const LayerRest& rest) {
  VMOBA_CHECK(!cases.empty(), "--paper: expected at least one measured case, found none");
  std::string out =
      fmt::format("Wan2.1-1.3B layer, forward; the rest of a layer takes {:.2f} ms\n{:<16} {:>8} {:>13} {:>15}\n",
                  rest.forward_ms, "partition", "density", "fewer FLOPs x", "lower latency x");
  double density = 0, flops = 0, full_flops = 0, latency = 0, full_latency = 0;
  for (const BenchCase& c : cases) {
    const double attended = attention::attention_flops(c.tokens, kHeads, kHeadDim, c.density, c.blocks) + rest.flops;
    const double full = attention::attention_flops(c.tokens, kHeads, kHeadDim, 1, 0) + rest.flops;
    const double ms = c.forward_ms.median + rest.forward_ms, full_ms = c.full_forward_ms.median + rest.forward_ms;
    out += line(c.partition, c.density, {full / attended, full_ms / ms});
    density += c.density / double(cases.size());
    flops += attended, full_flops += full, latency += ms, full_latency += full_ms;
  }
  out += line("mean", density, {full_flops / flops, full_latency / latency});
  return out +
         "paper, trained                        2.92            1.48\npaper, training-free                  2.40       "
         "     1.35\n";
}

}  // namespace vmoba::bench
