// Products with factors in fp8 beside exact ones: which values they multiply, how far results and gradients are off,
// which maps take them. Cases with the tag [gpu] need one of compute capability 8.9.
#include "model/common/fp8_linear.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <string>

#include "core/random.h"
#include "model/common/kept.h"
#include "model/recompute_plan.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::model;

namespace {

at::Tensor normals(const char* stream, at::IntArrayRef shape) {
  const at::Tensor out = at::empty(shape, at::kFloat);
  fill_normal(5, stream, 0, out.mutable_data_ptr<float>(), out.numel());
  return out;
}

// Rows, and columns, of very different size.
at::Tensor uneven(const char* stream, int64_t rows, int64_t columns) {
  const at::Tensor sizes = at::linspace(-3, 2, rows).exp2().unsqueeze(1) * at::linspace(2, -3, columns).exp2();
  return normals(stream, {rows, columns}) * sizes;
}

double relative(const at::Tensor& found, const at::Tensor& exact) {
  return ((found.to(at::kDouble) - exact.to(at::kDouble)).norm() / exact.to(at::kDouble).norm()).item<double>();
}

ModelConfig fp8_config(const char* scaling = "row") {
  ModelConfig config;
  config.linear_compute = "fp8";
  config.fp8_scaling = scaling;
  return config;
}

// Half a unit of three, or two, bits behind the point, and half of the smallest number.
double rounding_of(at::ScalarType format) {
  return format == at::kFloat8_e4m3fn ? 1.0 / 16 : 1.0 / 8;
}
double largest_of(at::ScalarType format) {
  return format == at::kFloat8_e4m3fn ? 448 : 57344;
}
double smallest_of(at::ScalarType format) {
  return format == at::kFloat8_e4m3fn ? std::pow(2.0, -9) : std::pow(2.0, -16);
}

struct Products {
  std::vector<at::Tensor> values;  // results, then gradients of x, weights and biases
};

// Two maps of one input and their gradients.
Products run(const ModelConfig& config, at::ScalarType dtype, at::Device device) {
  const auto leaf = [&](const at::Tensor& x) { return x.to(dtype).to(device).requires_grad_(true); };
  const at::Tensor x = leaf(normals("x", {2, 21, 64}));  // 42 rows, no multiple of 16
  const std::vector<at::Tensor> weights = {leaf(0.1 * normals("w0", {48, 64})), leaf(0.2 * normals("w1", {32, 64}))};
  const std::vector<at::Tensor> biases = {leaf(normals("b0", {48})), leaf(normals("b1", {32}))};
  const std::vector<at::Tensor> dys = {normals("dy0", {2, 21, 48}), normals("dy1", {2, 21, 32})};
  std::vector<at::Tensor> ys;
  if (config.linear_compute == "fp8")
    ys = fp8_linears(config, x, weights, biases, {at::Tensor(), at::Tensor()});
  else
    for (size_t i = 0; i < 2; ++i) ys.push_back(at::linear(x, weights[i], biases[i]));
  at::Tensor sum = at::zeros({}, x.options());
  for (size_t i = 0; i < 2; ++i) sum = sum + (ys[i] * dys[i].to(dtype).to(device)).sum();
  sum.backward();
  Products out{{ys[0].detach(), ys[1].detach(), x.grad()}};
  for (const auto* leaves : {&weights, &biases})
    for (const at::Tensor& tensor : *leaves) out.values.push_back(tensor.grad());
  return out;
}

ModelConfig small_model(const char* linear_compute, Recompute recompute) {
  ModelConfig config;
  config.layers = 2;
  config.heads = 2;
  config.head_dim = 16;
  config.own<WanConfig>().ffn_dim = 64;
  config.in_channels = config.out_channels = 4;
  config.text_dim = 16;
  config.own<WanConfig>().freq_dim = 16;
  config.linear_compute = linear_compute;
  config.recompute = recompute;
  return config;
}

// Gradients of a small transformer in fp32, by parameter.
std::map<std::string, at::Tensor> model_gradients(const ModelConfig& config) {
  attention::AttentionConfig attention;
  attention.backend = "full";
  const auto dit = make_dit(config, attention, 3, at::kCPU);
  for (const Parameter& p : dit->parameters()) {
    at::Tensor values = p.tensor.detach();
    if (p.name.starts_with("proj_out")) values.copy_(0.1 * normals(p.name.c_str(), values.sizes()));  // zeros at first
  }
  const at::Tensor latents = normals("latents", {1, 4, 2, 4, 4});
  const DitInput input{latents, at::full({1}, 500.0), {{normals("text", {1, 3, 16})}}};
  const at::Tensor out = dit->forward(input, {at::kFloat, false, recompute_plan(config)});
  (out * normals("cotangent", out.sizes())).sum().backward();
  std::map<std::string, at::Tensor> gradients;
  for (const Parameter& p : dit->parameters()) gradients[p.name] = p.tensor.grad();
  return gradients;
}

}  // namespace

TEST_CASE("a factor holds the nearest values of its format under the scale of each row, or of all") {
  for (const at::ScalarType format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    for (const bool by_row : {true, false}) {
      INFO(format << (by_row ? ", rows" : ", tensor"));
      const at::Tensor x = uneven("x", 20, 32);
      x.select(0, 7).zero_();
      const Fp8Factor factor = fp8_factor(x, format, by_row);
      REQUIRE(factor.values.scalar_type() == format);
      REQUIRE(factor.scale.sizes() == at::IntArrayRef({by_row ? 20 : 1, 1}));
      const at::Tensor largest = by_row ? x.abs().amax(1, true) : x.abs().amax().view({1, 1});
      const at::Tensor expected = at::where(largest == 0, at::ones({}), largest / largest_of(format));
      CHECK(at::allclose(factor.scale, expected, 1e-6, 0));
      const at::Tensor error = (factor.values.to(at::kFloat) * factor.scale - x).abs();
      const at::Tensor bound = x.abs() * rounding_of(format) * (1 + 1e-6) + factor.scale * smallest_of(format) / 2;
      CHECK((error <= bound).all().item<bool>());
      CHECK(error.max().item<double>() > 0);
      const Fp8Factor turned = fp8_transposed(x, format, by_row),
                      of_turned = fp8_factor(x.t().contiguous(), format, by_row);
      REQUIRE(turned.values.sizes() == at::IntArrayRef({32, 32}));  // 20 rows and 12 of zeros
      CHECK(at::equal(turned.values.to(at::kFloat).narrow(1, 0, 20), of_turned.values.to(at::kFloat)));
      CHECK(turned.values.to(at::kFloat).narrow(1, 20, 12).abs().max().item<double>() == 0);
      CHECK(at::equal(turned.scale, of_turned.scale));
    }
  }
}

TEST_CASE("results and gradients are as near as factors of three and two bits allow") {
  const Products exact = run(ModelConfig(), at::kDouble, at::kCPU);
  for (const char* scaling : {"row", "tensor"}) {
    const Products fp8 = run(fp8_config(scaling), at::kFloat, at::kCPU);
    for (size_t i = 0; i < exact.values.size(); ++i) {
      INFO(scaling << ", " << i);
      // Rounding to three bits is off by 2^-4 / sqrt(3) at most in the mean, to two by twice that; two factors.
      const double bound = i >= 5 ? 1e-6 : std::hypot(i < 2 ? 1.0 / 16 : 1.0 / 8, 1.0 / 16) / std::sqrt(3);
      CHECK(relative(fp8.values[i], exact.values[i]) < bound);
      if (i < 5) CHECK(relative(fp8.values[i], exact.values[i]) > 1e-3);
    }
  }
}

TEST_CASE("which maps compute in fp8") {
  const at::Tensor x = at::zeros({3, 32});
  Linear map{at::zeros({48, 32}), at::zeros({48})};
  ModelConfig config = fp8_config();
  CHECK(takes_fp8(config, x, {map, "attn1.to_q"}));
  config.fp8_maps = "feed_forward";
  CHECK_FALSE(takes_fp8(config, x, {map, "attn1.to_q"}));
  CHECK(takes_fp8(config, x, {map, "ffn.net.0.proj"}));
  CHECK_FALSE(takes_fp8(ModelConfig(), x, {map, "ffn.net.0.proj"}));
  map.adapter.a = at::zeros({4, 32});
  CHECK_FALSE(takes_fp8(config, x, {map, "ffn.net.0.proj"}));
  const Linear odd{at::zeros({40, 32}), at::zeros({40})};
  CHECK_FALSE(takes_fp8(config, x, {odd, "ffn.net.0.proj"}));
}

TEST_CASE("a transformer's gradients in fp8 are near, and the same whatever is recomputed") {
  const auto exact = model_gradients(small_model("bf16", Recompute::kNone));
  const auto fp8 = model_gradients(small_model("fp8", Recompute::kNone));
  const auto again = model_gradients(small_model("fp8", Recompute::kBlock));
  for (const auto& [name, gradient] : exact) {
    INFO(name);
    CHECK(relative(fp8.at(name), gradient) < 0.3);
    CHECK(at::equal(fp8.at(name), again.at(name)));
  }
  CHECK(relative(fp8.at("blocks.0.ffn.net.0.proj.weight"), exact.at("blocks.0.ffn.net.0.proj.weight")) > 1e-3);
}

TEST_CASE("the kernels quantise as the CPU does", "[gpu]") {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{1, 16}, {20, 32}, {333, 1536}, {65, 8960}, {40, 13824}}) {
    const at::Tensor x = uneven("x", shape[0], shape[1]).to(at::kBFloat16);
    x.select(0, 0).zero_();
    for (const at::ScalarType format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
      for (const bool by_row : {true, false}) {
        INFO(shape[0] << " x " << shape[1] << ", " << format << (by_row ? ", rows" : ", tensor"));
        const auto same = [](const Fp8Factor& here, const Fp8Factor& there) {
          CHECK(at::equal(here.scale.cpu(), there.scale));
          CHECK(at::equal(here.values.cpu().view(at::kByte), there.values.contiguous().view(at::kByte)));
        };
        same(fp8_factor(x.cuda(), format, by_row), fp8_factor(x, format, by_row));
        same(fp8_transposed(x.cuda(), format, by_row), fp8_transposed(x, format, by_row));
      }
    }
  }
}

TEST_CASE("the tensor cores multiply what the CPU multiplies", "[gpu]") {
  for (const char* scaling : {"row", "tensor"}) {
    const Products cpu = run(fp8_config(scaling), at::kBFloat16, at::kCPU);
    const Products gpu = run(fp8_config(scaling), at::kBFloat16, at::kCUDA);
    for (size_t i = 0; i < cpu.values.size(); ++i) {
      INFO(scaling << ", " << i);
      CHECK(relative(gpu.values[i].cpu(), cpu.values[i]) < 1.0 / 128);  // sums in another order, rounded to bf16
    }
  }
}
