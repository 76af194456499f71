// Products with factors in fp8 beside exact ones: which values they multiply, how far results and gradients are off,
// which maps take them. Cases with the tag [gpu] need one of compute capability 8.9.
#include "model/common/fp8_linear.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <string>

#include "core/random.h"
#include "model/common/fp8_factor.h"
#include "model/common/kept.h"
#include "model/recompute_plan.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::model;
using quantise::Operation;

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

ModelConfig fp8_config() {
  ModelConfig config;
  config.linear_compute = "fp8";
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

// Results, then gradients of x, weights and biases.
using Products = std::vector<at::Tensor>;

struct Leaves {
  at::Tensor x;
  std::vector<at::Tensor> weights, biases;
};

// Weights and biases in fp32, as parameters are; x in `dtype`; all in fp64 where that is.
Leaves leaves_of(std::vector<at::Tensor> weights, std::vector<at::Tensor> biases, at::ScalarType dtype,
                 at::Device device) {
  const auto leaf = [&](const at::Tensor& x, at::ScalarType type) {
    return x.to(type).to(device).requires_grad_(true);
  };
  const at::ScalarType kept = dtype == at::kDouble ? at::kDouble : at::kFloat;
  Leaves out{leaf(normals("x", {2, 21, 64}), dtype), {}, {}};  // 42 rows, no multiple of 16
  for (const at::Tensor& weight : weights) out.weights.push_back(leaf(weight, kept));
  for (const at::Tensor& bias : biases) out.biases.push_back(leaf(bias, kept));
  return out;
}

Products differentiated(const std::vector<at::Tensor>& ys, const Leaves& leaves) {
  at::Tensor sum = at::zeros({}, leaves.x.options());
  for (size_t i = 0; i < ys.size(); ++i)
    sum = sum + (ys[i] * normals(i == 0 ? "dy0" : "dy1", ys[i].sizes()).to(ys[i].options())).sum();
  sum.backward();
  Products out;
  for (const at::Tensor& y : ys) out.push_back(y.detach());
  out.push_back(leaves.x.grad());
  for (const auto* tensors : {&leaves.weights, &leaves.biases})
    for (const at::Tensor& tensor : *tensors) out.push_back(tensor.grad());
  return out;
}

std::vector<at::Tensor> exact_linears(const Leaves& leaves) {
  std::vector<at::Tensor> ys;
  for (size_t i = 0; i < leaves.weights.size(); ++i)
    ys.push_back(at::linear(leaves.x, leaves.weights[i], leaves.biases[i]));
  return ys;
}

// Two maps of one input and their gradients.
Products run_maps(bool fp8, at::ScalarType dtype, at::Device device) {
  const Leaves leaves = leaves_of({0.1 * normals("w0", {48, 64}), 0.2 * normals("w1", {32, 64})},
                                  {normals("b0", {48}), normals("b1", {32})}, dtype, device);
  Fp8Known known;
  return differentiated(fp8 ? fp8_linears(leaves.x, leaves.weights, leaves.biases, known) : exact_linears(leaves),
                        leaves);
}

// A feed-forward and its gradients.
Products run_feed_forward(bool fp8, at::ScalarType dtype, at::Device device) {
  const Leaves leaves = leaves_of({0.1 * normals("w0", {96, 64}), 0.2 * normals("w1", {32, 96})},
                                  {normals("b0", {96}), normals("b1", {32})}, dtype, device);
  const auto &w = leaves.weights, &b = leaves.biases;
  Fp8Known up, down;
  const at::Tensor y = fp8 ? fp8_feed_forward(leaves.x, {w[0], b[0], w[1], b[1]}, up, down)
                           : at::linear(at::gelu(at::linear(leaves.x, w[0], b[0]), "tanh"), w[1], b[1]);
  return differentiated({y}, leaves);
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

TEST_CASE("rows hold the nearest values of their format under the least power of two that suffices") {
  for (const at::ScalarType format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    INFO(format);
    const at::Tensor x = uneven("x", 20, 32);
    x.select(0, 7).zero_();
    x[3][5] = largest_of(format) * 8;  // the largest number of a scale belongs to it
    const Fp8Rows rows = fp8_rows({x}, format);
    REQUIRE(rows.values.scalar_type() == format);
    REQUIRE(rows.scale.sizes() == at::IntArrayRef({20, 1}));
    CHECK(rows.scale[3].item<double>() == 8);
    CHECK(rows.largest.item<double>() == rows.scale.max().item<double>());
    for (int64_t row = 0; row < 20; ++row) {
      const double largest = x[row].abs().max().item<double>(), scale = rows.scale[row].item<double>();
      const double exact = std::exp2(std::ceil(std::log2(largest / largest_of(format))));
      CHECK(scale == (largest == 0 ? std::exp2(-100) : exact));
    }
    const at::Tensor error = (rows.values.to(at::kFloat) * rows.scale - x).abs();
    const at::Tensor bound = x.abs() * rounding_of(format) * (1 + 1e-6) + rows.scale * smallest_of(format) / 2;
    CHECK((error <= bound).all().item<bool>());
    CHECK(error.max().item<double>() > 0);
    const Fp8Rows joint = fp8_rows({x.narrow(1, 0, 16), x.narrow(1, 16, 16)}, format);
    CHECK(at::equal(joint.values.to(at::kFloat), rows.values.to(at::kFloat)));
  }
}

TEST_CASE("a transpose has the values under one scale, and zeros up to a multiple of 16 rows") {
  const at::Tensor x = uneven("x", 20, 32);
  const Fp8Rows rows = fp8_rows({x}, at::kFloat8_e4m3fn);
  const auto check = [&](const Fp8Transposed& turned, const at::Tensor& exact, double roundings) {
    REQUIRE(turned.values.sizes() == at::IntArrayRef({32, 32}));  // 20 rows and 12 of zeros
    CHECK(turned.scale.item<double>() == rows.largest.item<double>());
    const at::Tensor values = turned.values.to(at::kFloat);
    CHECK(values.narrow(1, 20, 12).abs().max().item<double>() == 0);
    const at::Tensor error = (values.narrow(1, 0, 20) * turned.scale - exact.t()).abs();
    const at::Tensor smallest = turned.scale * smallest_of(at::kFloat8_e4m3fn) / 2;
    CHECK((error <= roundings * (exact.t().abs() / 16 * (1 + 1e-6) + smallest)).all().item<bool>());
  };
  check(fp8_transposed(x, rows.largest), x, 1);
  // Rounding twice differs from once where numbers are below the format's normal ones alone.
  check(fp8_transposed(rows), rows.values.to(at::kFloat) * rows.scale, 1);
  check(fp8_transposed(rows), x, 2.1);
}

TEST_CASE("GELU and its derivative stand before quantising, sums beside it") {
  const at::Tensor x = normals("x", {20, 32}), dy = normals("dy", {20, 32});
  const at::Tensor leaf = x.clone().requires_grad_(true), activated = at::gelu(leaf, "tanh");
  activated.backward(dy);
  const auto near = [](const Fp8Rows& rows, const at::Tensor& exact, double rounding) {
    const at::Tensor error = (rows.values.to(at::kFloat) * rows.scale - exact).abs();
    CHECK((error <= exact.abs() * rounding + rows.scale * 0.01).all().item<bool>());
  };
  near(fp8_rows({x}, at::kFloat8_e4m3fn, Operation::kGelu), activated.detach(), 1.01 / 16);
  at::Tensor sums;
  near(fp8_rows_through_gelu(dy, x, at::kFloat8_e5m2, sums), leaf.grad(), 1.01 / 8);
  CHECK(at::allclose(sums, leaf.grad().sum(0), 1e-5, 1e-5));
  fp8_rows({dy}, at::kFloat8_e5m2, sums);
  CHECK(at::allclose(sums, dy.sum(0), 1e-5, 1e-5));
}

TEST_CASE("results and gradients are as near as factors of three and two bits allow") {
  const Products exact = run_maps(false, at::kDouble, at::kCPU), fp8 = run_maps(true, at::kFloat, at::kCPU);
  for (size_t i = 0; i < exact.size(); ++i) {
    INFO(i);
    // Rounding to three bits is off by 2^-4 / sqrt(3) at most in the mean, to two by twice that; two factors.
    const double bound = i >= 5 ? 1e-6 : std::hypot(i < 2 ? 1.0 / 16 : 1.0 / 8, 1.0 / 16) / std::sqrt(3);
    CHECK(relative(fp8[i], exact[i]) < bound);
    if (i < 5) CHECK(relative(fp8[i], exact[i]) > 1e-3);
  }
}

TEST_CASE("a feed-forward in fp8 is as near as its two products allow") {
  const Products exact = run_feed_forward(false, at::kDouble, at::kCPU),
                 fp8 = run_feed_forward(true, at::kFloat, at::kCPU);
  for (size_t i = 0; i < exact.size(); ++i) {
    INFO(i);
    // y of two products, dx of four, dW and db of the first map of three.
    CHECK(relative(fp8[i], exact[i]) < (i == 5 ? 1e-6 : 0.15));
    if (i != 5) CHECK(relative(fp8[i], exact[i]) > 1e-3);
  }
}

TEST_CASE("which maps compute in fp8") {
  const at::Tensor x = at::zeros({3, 32});
  Linear map{at::zeros({48, 32}), at::zeros({48})};
  ModelConfig config = fp8_config();
  CHECK(takes_fp8(config, x, map, "attn1.to_q"));
  config.fp8_maps = "feed_forward";
  CHECK_FALSE(takes_fp8(config, x, map, "attn1.to_q"));
  CHECK(takes_fp8(config, x, map, "ffn.net.0.proj"));
  CHECK_FALSE(takes_fp8(ModelConfig(), x, map, "ffn.net.0.proj"));
  map.adapter.a = at::zeros({4, 32});
  CHECK_FALSE(takes_fp8(config, x, map, "ffn.net.0.proj"));
  const Linear odd{at::zeros({40, 32}), at::zeros({40})};
  CHECK_FALSE(takes_fp8(config, x, odd, "ffn.net.0.proj"));
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
  const auto bytes = [](const at::Tensor& x) { return x.cpu().contiguous().view(at::kByte); };
  const auto same = [&](const Fp8Rows& here, const Fp8Rows& there) {
    CHECK(at::equal(here.scale.cpu(), there.scale));
    CHECK(at::equal(here.largest.cpu(), there.largest));
    CHECK(at::equal(bytes(here.values), bytes(there.values)));
    CHECK(at::equal(bytes(fp8_transposed(here).values), bytes(fp8_transposed(there).values)));
  };
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{1, 16}, {20, 32}, {333, 1536}, {65, 8960}, {40, 13824}, {2049, 144}}) {
    const at::Tensor x = uneven("x", shape[0], shape[1]).to(at::kBFloat16), on_gpu = x.cuda();
    x.select(0, 0).zero_();
    on_gpu.copy_(x);
    for (const at::ScalarType format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
      INFO(shape[0] << " x " << shape[1] << ", " << format);
      same(fp8_rows({on_gpu}, format), fp8_rows({x}, format));
      at::Tensor sums, sums_there;
      same(fp8_rows({on_gpu}, format, sums), fp8_rows({x}, format, sums_there));
      CHECK(at::allclose(sums.cpu(), sums_there, 1e-5, 1e-5 * x.abs().max().item<double>()));
    }
    const at::Tensor scale = fp8_rows({x}, at::kFloat8_e4m3fn).largest;
    CHECK(at::equal(bytes(fp8_transposed(on_gpu, scale.cuda()).values), bytes(fp8_transposed(x, scale).values)));
  }
}

TEST_CASE("the kernels quantise matrices side by side as one", "[gpu]") {
  const at::Tensor a = uneven("a", 300, 1536).to(at::kBFloat16), b = uneven("b", 300, 48).to(at::kBFloat16),
                   c = uneven("c", 300, 3072).to(at::kBFloat16);
  at::Tensor sums, sums_there;
  const Fp8Rows here = fp8_rows({a.cuda(), b.cuda(), c.cuda()}, at::kFloat8_e5m2, sums);
  const Fp8Rows there = fp8_rows({a, b, c}, at::kFloat8_e5m2, sums_there);
  CHECK(at::equal(here.scale.cpu(), there.scale));
  CHECK(at::equal(here.values.cpu().view(at::kByte), there.values.view(at::kByte)));
  CHECK(relative(sums.cpu(), sums_there) < 1e-5);
}

TEST_CASE("the kernels quantise GELU and its gradient as computed in fp64", "[gpu]") {
  for (const int64_t width : {int64_t(32), int64_t(1536), int64_t(8192), int64_t(8960), int64_t(13824)}) {
    INFO(width);
    const at::Tensor x = (2 * normals("x", {130, width})).to(at::kBFloat16),
                     dy = uneven("dy", 130, width).to(at::kBFloat16);
    const at::Tensor exact = x.to(at::kDouble);
    const at::Tensor activated = at::gelu(exact, "tanh").to(at::kBFloat16);
    const at::Tensor gradient = at::gelu_backward(dy.to(at::kDouble), exact, "tanh").to(at::kBFloat16);
    // A value that fp32 moves across a bound between two numbers of bf16 may fall on the other of two in fp8.
    const auto same = [](const at::Tensor& here, const at::Tensor& there) {
      const at::Tensor a = here.cpu().to(at::kFloat), b = there.to(at::kFloat);
      CHECK((a == b).to(at::kFloat).mean().item<double>() > 0.998);
      CHECK(relative(a, b) < 1.0 / 64);
    };
    const Fp8Rows here = fp8_rows({x.cuda()}, at::kFloat8_e4m3fn, Operation::kGelu),
                  there = fp8_rows({activated}, at::kFloat8_e4m3fn);
    same(here.values, there.values);
    same(here.scale, there.scale);
    same(fp8_transposed(x.cuda(), there.largest.cuda(), Operation::kGelu).values,
         fp8_transposed(activated, there.largest).values);
    at::Tensor sums, sums_there;
    same(fp8_rows_through_gelu(dy.cuda(), x.cuda(), at::kFloat8_e5m2, sums).values,
         fp8_rows({gradient}, at::kFloat8_e5m2, sums_there).values);
    CHECK(relative(sums.cpu(), sums_there) < 1.0 / 256);
  }
}

TEST_CASE("the tensor cores multiply what the CPU multiplies", "[gpu]") {
  for (const auto run : {run_maps, run_feed_forward}) {
    const Products cpu = run(true, at::kBFloat16, at::kCPU), gpu = run(true, at::kBFloat16, at::kCUDA);
    for (size_t i = 0; i < cpu.size(); ++i) {
      INFO((run == run_maps ? "maps" : "feed-forward") << ", " << i);
      // Sums in another order, rounded to bf16; a hidden value that rounds otherwise moves to the next fp8 number.
      CHECK(relative(gpu[i].cpu(), cpu[i]) < (run == run_maps ? 1.0 / 128 : 1.0 / 64));
    }
  }
}
