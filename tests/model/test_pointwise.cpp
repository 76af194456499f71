// The kernels between a block's matrix products beside the ATen operations that they stand for. Cases with the tag
// [gpu] need one; the others run anywhere.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "model/common/kept.h"
#include "model/common/pointwise.h"
#include "model/common/rope.h"
#include "model/kernels/pointwise.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::model;

namespace {

const auto kGpu = at::TensorOptions().device(at::kCUDA);

struct Sizes {
  int64_t batch, tokens, runs, heads, head_dim;
  int64_t width() const { return heads * head_dim; }
};
// One row, one vector, ragged chunks, a run for each token, every number of vectors per thread.
const Sizes kSizes[] = {{1, 1, 1, 1, 8},    {2, 3, 3, 1, 8},       {1, 1000, 1, 12, 128}, {2, 96, 4, 12, 128},
                        {1, 40, 40, 3, 64}, {1, 2500, 1, 40, 128}, {1, 37, 1, 64, 128},   {1, 20, 2, 128, 128}};

ModelConfig config_for(const Sizes& sizes, const char* pointwise) {
  ModelConfig config;
  config.heads = sizes.heads, config.head_dim = sizes.head_dim, config.pointwise = pointwise;
  return config;
}

// Everything that an operation may take, as bf16 activations and fp32 modulation.
struct Inputs {
  at::Tensor x, branch, scale, shift, weight, bias, table, dy;
};
Inputs inputs_for(const Sizes& s) {
  at::manual_seed(5);
  const auto activation = [&](double spread, double middle) {
    return (at::randn({s.batch, s.tokens, s.width()}, kGpu) * spread + middle).to(at::kBFloat16);
  };
  const auto modulation = [&] { return at::randn({s.batch, s.runs, s.width()}, kGpu) * 0.3; };
  Inputs in{activation(2, 0.5),
            activation(1, 0),
            modulation(),
            modulation(),
            at::randn({s.width()}, kGpu) * 0.2 + 1,
            at::randn({s.width()}, kGpu) * 0.2,
            {},
            activation(1, 0)};
  in.table = rope_table({1, 1, s.tokens}, sixths(s.head_dim), at::kFloat, at::kCUDA);
  return in;
}

using Operation =
    std::function<at::Tensor(const ModelConfig&, const std::vector<at::Tensor>&, const at::Tensor& table)>;
// The rows of a map and its bias, whose gradient comes from here or from the operation behind it.
at::Tensor mapped(const ModelConfig& config, const at::Tensor& rows, const at::Tensor& bias) {
  return rows + without_bias_gradient({{}, bias}, sums_for_biases(config, rows)).bias.to(rows.scalar_type());
}
// Both results in one.
at::Tensor joined(const SumAndNorm& results) {
  return results.sum_BSE + results.norm_BSE;
}

struct Case {
  const char* name;
  std::function<std::vector<at::Tensor>(const Inputs&)> arguments;  // activations first
  Operation run;
};
const Case kCases[] = {
    {"modulated norm",
     [](const Inputs& in) {
       return std::vector{in.x, in.scale, in.shift};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) { return modulated_norm(c, a[0], a[1], a[2]); }},
    {"affine norm",
     [](const Inputs& in) {
       return std::vector{in.x, in.weight, in.bias};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) { return affine_norm(c, a[0], a[1], a[2]); }},
    {"norm of heads",
     [](const Inputs& in) {
       return std::vector{in.x, in.weight};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) { return norm_of_heads(c, a[0], a[1]).flatten(2); }},
    {"norm of heads, rotated",
     [](const Inputs& in) {
       return std::vector{in.x, in.weight};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor& table) {
       return norm_of_heads(c, a[0], a[1], table).flatten(2);
     }},
    {"norm of each head",
     [](const Inputs& in) {
       return std::vector{in.x, in.weight.slice(0, 0, 2 * in.table.size(1)).clone()};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) {
       return norm_of_each_head(c, a[0], a[1]).flatten(2);
     }},
    {"norm of each head, rotated",
     [](const Inputs& in) {
       return std::vector{in.x, in.weight.slice(0, 0, 2 * in.table.size(1)).clone()};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor& table) {
       return norm_of_each_head(c, a[0], a[1], table).flatten(2);
     }},
    {"gated sum",
     [](const Inputs& in) {
       return std::vector{in.x, in.branch, in.scale};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) { return gated_sum(c, a[0], a[1], a[2]); }},
    {"gated sum of a map",
     [](const Inputs& in) {
       return std::vector{in.x, in.branch, in.scale, in.bias};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) {
       return gated_sum(c, a[0], mapped(c, a[1], a[3]), a[2], a[3]);
     }},
    {"norm of heads of a map, rotated",
     [](const Inputs& in) {
       return std::vector{in.x, in.weight, in.bias};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor& table) {
       return norm_of_heads(c, mapped(c, a[0], a[2]), a[1], table, a[2]).flatten(2);
     }},
    {"gated residual and modulated norm",
     [](const Inputs& in) {
       return std::vector{in.x, in.branch, in.shift, in.scale, in.scale - 0.5 * in.shift, in.bias};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) {
       return joined(sum_norm(c, {a[0], mapped(c, a[1], a[5]), a[2], a[5]}, {a[3], a[4]}));
     }},
    {"gated residual and affine norm",
     [](const Inputs& in) { return std::vector{in.x, in.branch, in.shift, in.weight, in.weight - 0.5, in.bias}; },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) {
       return joined(sum_norm(c, {a[0], mapped(c, a[1], a[5]), a[2], a[5]}, {a[3], a[4], false}));
     }},
    {"norm beside",
     [](const Inputs& in) {
       return std::vector{in.x, in.scale, in.shift};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) { return joined(norm_beside(c, a[0], a[1], a[2])); }},
    {"residual and modulated norm",
     [](const Inputs& in) {
       return std::vector{in.x, in.branch, in.scale, in.shift, in.bias};
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) {
       return joined(sum_norm(c, {a[0], mapped(c, a[1], a[4]), {}, a[4]}, {a[2], a[3]}));
     }},
};

std::vector<at::Tensor> masters(int64_t outputs, int64_t inputs) {
  return {at::randn({outputs, inputs}, kGpu) / std::sqrt(double(inputs)), at::randn({outputs}, kGpu)};
}

// Products with epilogues. Bits of theirs may depend on strides: other kernels take other layouts.
const Case kProducts[] = {
    {"maps of one input",
     [](const Inputs& in) {
       std::vector<at::Tensor> out = {in.x};
       for (const int64_t outputs : {8, 40, 264})
         for (const at::Tensor& x : masters(outputs, in.x.size(2))) out.push_back(x);
       return out;
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) {
       const Linear one{a[1], a[2]}, two{a[3], a[4]}, three{a[5], a[6]};
       Kept kept;
       const auto y = kept_linears(c, a[0], {{one, "1"}, {two, "2"}, {three, "3"}}, kept);
       return at::cat(y, 2).sum(2, /*keepdim=*/true) * a[0];
     }},
    {"GELU and a map",
     [](const Inputs& in) {
       std::vector<at::Tensor> out = masters(in.x.size(2), in.x.size(2));
       out.insert(out.begin(), in.x);
       return out;
     },
     [](const ModelConfig& c, const auto& a, const at::Tensor&) {
       const Linear map{a[1], a[2]};
       Kept kept;
       return kept_gelu_linear(c, a[0], {map, "1"}, kept);
     }},
};

bool is_product(const Case& one) {
  return std::any_of(std::begin(kProducts), std::end(kProducts),
                     [&](const Case& product) { return std::string(product.name) == one.name; });
}

std::vector<Case> all_cases() {
  std::vector<Case> out(std::begin(kCases), std::end(kCases));
  out.insert(out.end(), std::begin(kProducts), std::end(kProducts));
  return out;
}

// Output and gradients of all arguments.
std::vector<at::Tensor> outcome(const Case& one, const ModelConfig& config, std::vector<at::Tensor> arguments,
                                const at::Tensor& table, const at::Tensor& dy) {
  for (at::Tensor& argument : arguments) argument = argument.detach().requires_grad_();
  const at::Tensor out = one.run(config, arguments, table);
  std::vector<at::Tensor> all = torch::autograd::grad({out}, arguments, {dy.to(out.scalar_type())});
  all.insert(all.begin(), out.detach());
  return all;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST_CASE("only bf16 activations on a GPU take kernels, and only as configured") {
  ModelConfig config;
  CHECK_FALSE(takes_kernels(config, at::zeros({1, 2, 16}, at::kBFloat16)));
  CHECK_FALSE(takes_kernels(config, at::zeros({1, 2, 16})));
}

TEST_CASE("calls that the kernels cannot take are refused before a launch") {
  alignas(16) float memory[16] = {};
  const auto run = [&](int64_t rows, int64_t runs, int32_t width, const void* x) {
    return pointwise::layer_norm({{rows, runs, width}, 1e-6f, 1, x, memory, memory, memory, memory, memory}, nullptr);
  };
  for (const auto& [rows, runs, width] : {std::tuple<int64_t, int64_t, int32_t>{0, 1, 8},
                                          {4, 0, 8},
                                          {4, 3, 8},
                                          {4, 1, 0},
                                          {4, 1, 12},
                                          {4, 1, 16392},
                                          {int64_t(1) << 40, 1, 8}})
    CHECK(run(rows, runs, width, memory) == cudaErrorInvalidValue);
  CHECK(run(4, 1, 8, nullptr) == cudaErrorInvalidValue);
  CHECK(run(4, 1, 8, memory + 1) == cudaErrorInvalidValue);
  pointwise::RmsNorm rms{{4, 1, 16}, 1e-6f, memory, memory, reinterpret_cast<const float2*>(memory),
                         4,          12,    memory, memory};
  CHECK(pointwise::rms_norm(rms, nullptr) == cudaErrorInvalidValue);
  rms.head_dim = 16, rms.rows.runs = 2;
  CHECK(pointwise::rms_norm(rms, nullptr) == cudaErrorInvalidValue);
  pointwise::GatedSumBackward gate{{400, 1, 16}, memory, memory, memory, memory, memory, nullptr};
  CHECK(pointwise::column_workspace_bytes(gate.rows) > 0);
  CHECK(pointwise::gated_sum_backward(gate, nullptr) == cudaErrorInvalidValue);
}

TEST_CASE("kernels err no more than plain bf16 operations", "[gpu]") {
  for (const Sizes& sizes : kSizes) {
    const Inputs in = inputs_for(sizes);
    for (const Case& one : all_cases()) {
      INFO(one.name << ": " << sizes.batch << " x " << sizes.tokens << " x " << sizes.width() << ", " << sizes.runs
                    << " runs");
      const std::vector<at::Tensor> arguments = one.arguments(in);
      std::vector<at::Tensor> exact_arguments;
      for (const at::Tensor& argument : arguments) exact_arguments.push_back(argument.to(at::kDouble));
      const auto exact =
          outcome(one, config_for(sizes, "auto"), exact_arguments, in.table.to(at::kComplexDouble), in.dy);
      const auto plain = outcome(one, config_for(sizes, "reference"), arguments, in.table, in.dy);
      const auto found = outcome(one, config_for(sizes, "auto"), arguments, in.table, in.dy);
      REQUIRE(takes_kernels(config_for(sizes, "auto"), arguments[0]));
      for (size_t i = 0; i < found.size(); ++i) {
        INFO((i == 0 ? "output" : "gradient") << " " << i);
        REQUIRE(found[i].scalar_type() == plain[i].scalar_type());
        REQUIRE(found[i].sizes() == plain[i].sizes());
        // A last rounding to bf16, or up to 128 additions in fp32 one after another of terms that partly cancel. A
        // product's gradients in fp32 add up terms that were rounded to bf16, and what plain operations give may lie
        // nearer by the rounding of the sum.
        const bool terms = found[i].scalar_type() == at::kFloat && is_product(one);
        const double unit = found[i].scalar_type() == at::kBFloat16 ? std::exp2(-9)
                            : terms                                 ? std::exp2(-8)
                                    : 128 * std::exp2(-24) * std::sqrt(double(sizes.batch * sizes.tokens));
        CHECK(distance(found[i], exact[i]) <=
              2 * distance(plain[i], exact[i]) + unit * exact[i].abs().max().item<double>());
      }
    }
  }
}

TEST_CASE("kernels give the same bits in every run, for strided activations too", "[gpu]") {
  const Sizes sizes{2, 960, 4, 12, 128};
  const Inputs in = inputs_for(sizes);
  const ModelConfig config = config_for(sizes, "auto");
  for (const Case& one : kCases) {
    INFO(one.name);
    const std::vector<at::Tensor> arguments = one.arguments(in);
    const auto first = outcome(one, config, arguments, in.table, in.dy);
    std::vector<at::Tensor> strided = arguments;
    strided[0] = at::cat({arguments[0], arguments[0]}, 2).narrow(2, 0, sizes.width());
    const at::Tensor dy = in.dy.transpose(0, 1).contiguous().transpose(0, 1);
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto again = outcome(one, config, repeat == 2 ? strided : arguments, in.table, repeat == 2 ? dy : in.dy);
      for (size_t i = 0; i < first.size(); ++i) CHECK(at::equal(first[i], again[i]));
    }
  }
}

TEST_CASE("results that are known give the same gradients", "[gpu]") {
  const Sizes sizes{2, 96, 1, 12, 128};
  const ModelConfig config = config_for(sizes, "auto");
  const auto gradients = [&](const RecomputePolicy& policy) {
    const Inputs in = inputs_for(sizes);
    std::vector<at::Tensor> leaves = {in.x};
    for (const int64_t outputs : {40, 40, 1536})
      for (const at::Tensor& x : masters(outputs, outputs == 1536 ? 40 : sizes.width())) leaves.push_back(x);
    for (at::Tensor& leaf : leaves) leaf.requires_grad_();
    const auto body = [&](const std::vector<at::Tensor>& a, Kept& kept) {
      const Linear one{a[1], a[2]}, two{a[3], a[4]}, down{a[5], a[6]};
      const auto y = kept_linears(config, a[0], {{one, "one"}, {two, "two"}}, kept);
      return kept_gelu_linear(config, y[0] + y[1], {down, "down"}, kept);
    };
    const at::Tensor out = recompute_in_backward(body, leaves, policy);
    return torch::autograd::grad({out}, leaves, {in.dy});
  };
  const auto plain = gradients({});
  for (const RecomputePolicy& policy : {RecomputePolicy{true}, {true, {"one", "two", "down"}}, {true, {"two"}}}) {
    const auto found = gradients(policy);
    for (size_t i = 0; i < plain.size(); ++i) CHECK(at::equal(found[i], plain[i]));
  }
}

TEST_CASE("a row that is not finite spoils itself alone", "[gpu]") {
  const Sizes sizes{1, 50, 1, 12, 128};
  const Inputs in = inputs_for(sizes);
  for (const Case& one : kCases) {
    for (const double bad : {std::nan(""), double(INFINITY)}) {
      INFO(one.name << " with " << bad);
      std::vector<at::Tensor> arguments = one.arguments(in);
      const at::Tensor clean = one.run(config_for(sizes, "auto"), arguments, in.table);
      arguments[0] = arguments[0].clone();
      arguments[0][0][7][3] = bad;
      const at::Tensor plain = one.run(config_for(sizes, "reference"), arguments, in.table);
      const at::Tensor found = one.run(config_for(sizes, "auto"), arguments, in.table);
      CHECK(at::equal(found[0][7].isnan(), plain[0][7].isnan()));
      CHECK(at::equal(found.narrow(1, 0, 7), clean.narrow(1, 0, 7)));
      CHECK(at::equal(found.narrow(1, 8, 42), clean.narrow(1, 8, 42)));
    }
  }
}

TEST_CASE("kernels write their rows and nothing beside them", "[gpu]") {
  constexpr int64_t kRows = 77, kWidth = 1544, kGuard = 64;
  const at::Tensor x = at::randn({kRows, kWidth}, kGpu).to(at::kBFloat16), dy = at::randn_like(x);
  const at::Tensor modulation = at::randn({kWidth}, kGpu);
  // [guard | values | guard] of sevens.
  const auto guarded = [&](int64_t count, at::ScalarType dtype) {
    return at::full({count + 2 * kGuard}, 7, kGpu.dtype(dtype));
  };
  const auto inside = [&](const at::Tensor& all) {
    return all.narrow(0, kGuard, all.size(0) - 2 * kGuard).mutable_data_ptr();
  };
  const auto intact = [&](const at::Tensor& all) {
    return (all.narrow(0, 0, kGuard) == 7).all().item<bool>() &&
           (all.narrow(0, all.size(0) - kGuard, kGuard) == 7).all().item<bool>();
  };
  const pointwise::Rows rows{kRows, 1, int32_t(kWidth)};
  const at::Tensor y = guarded(kRows * kWidth, at::kBFloat16), mean = guarded(kRows, at::kFloat),
                   rstd = guarded(kRows, at::kFloat), dx = guarded(kRows * kWidth, at::kBFloat16),
                   dscale = guarded(kWidth, at::kFloat), dshift = guarded(kWidth, at::kFloat);
  const at::Tensor workspace = guarded(int64_t(pointwise::column_workspace_bytes(rows)), at::kByte);
  const auto floats = [&](const at::Tensor& all) { return static_cast<float*>(inside(all)); };
  const float* factor = modulation.const_data_ptr<float>();
  REQUIRE(pointwise::layer_norm(
              {rows, 1e-6f, 1, x.const_data_ptr(), factor, factor, inside(y), floats(mean), floats(rstd)}, nullptr) ==
          cudaSuccess);
  REQUIRE(pointwise::layer_norm_backward({rows, 1, x.const_data_ptr(), dy.const_data_ptr(), factor, floats(mean),
                                          floats(rstd), inside(dx), floats(dscale), floats(dshift), inside(workspace)},
                                         nullptr) == cudaSuccess);
  REQUIRE(pointwise::rms_norm({rows, 1e-6f, x.const_data_ptr(), factor, nullptr, 0, 0, inside(y), floats(rstd)},
                              nullptr) == cudaSuccess);
  REQUIRE(pointwise::rms_norm_backward({rows, x.const_data_ptr(), dy.const_data_ptr(), factor, floats(rstd), nullptr, 0,
                                        0, inside(dx), floats(dscale), inside(workspace)},
                                       nullptr) == cudaSuccess);
  REQUIRE(pointwise::gated_sum({rows, x.const_data_ptr(), dy.const_data_ptr(), factor, inside(y)}, nullptr) ==
          cudaSuccess);
  REQUIRE(pointwise::gated_sum_backward(
              {rows, x.const_data_ptr(), dy.const_data_ptr(), factor, inside(dx), floats(dscale), inside(workspace)},
              nullptr) == cudaSuccess);
  const at::Tensor sum = guarded(kRows * kWidth, at::kBFloat16), dbranch = guarded(kRows * kWidth, at::kBFloat16),
                   columns = guarded(4 * kWidth, at::kFloat),
                   scratch = guarded(int64_t(pointwise::sum_norm_workspace_bytes(rows)), at::kByte);
  REQUIRE(pointwise::sum_norm({rows, 1e-6f, 1, x.const_data_ptr(), dy.const_data_ptr(), factor, factor, factor,
                               inside(sum), inside(y), floats(mean), floats(rstd)},
                              nullptr) == cudaSuccess);
  REQUIRE(pointwise::sum_norm_backward(
              {rows, 1, inside(sum), dy.const_data_ptr(), dy.const_data_ptr(), x.const_data_ptr(), factor, factor,
               floats(mean), floats(rstd), inside(dx), inside(dbranch), floats(columns), inside(scratch)},
              nullptr) == cudaSuccess);
  for (const at::Tensor& all : {y, mean, rstd, dx, dscale, dshift, workspace, sum, dbranch, columns, scratch})
    CHECK(intact(all));
}

TEST_CASE("activations beyond 2^31 values", "[gpu]") {
  constexpr int64_t kRows = 1'400'032, kWidth = 1536;
  const at::Tensor x = at::randn({1, kRows, kWidth}, kGpu.dtype(at::kBFloat16));
  const Sizes sizes{1, kRows, 1, 12, 128};
  const ModelConfig config = config_for(sizes, "auto");
  const at::Tensor gate = at::randn({1, 1, kWidth}, kGpu), weight = at::randn({kWidth}, kGpu);
  const at::Tensor end = x.narrow(1, kRows - 32, 32).clone();
  const auto same_end = [&](const at::Tensor& all, const at::Tensor& expected) {
    return at::equal(all.narrow(1, kRows - 32, 32), expected);
  };
  CHECK(same_end(modulated_norm(config, x, gate, gate), modulated_norm(config, end, gate, gate)));
  CHECK(same_end(norm_of_heads(config, x, weight), norm_of_heads(config, end, weight)));
  CHECK(same_end(gated_sum(config, x, x, gate), gated_sum(config, end, end, gate)));
  CHECK(same_end(sum_norm(config, {x, x, gate, {}}, {gate, gate}).norm_BSE,
                 sum_norm(config, {end, end, gate, {}}, {gate, gate}).norm_BSE));
}

TEST_CASE("a transformer with kernels errs no more than one without", "[gpu]") {
  ModelConfig config;
  config.layers = 3, config.heads = 2, config.head_dim = 64, config.own<WanConfig>().ffn_dim = 256,
  config.text_dim = 32;
  attention::AttentionConfig attention;
  attention.backend = "full";
  at::manual_seed(8);
  const at::Tensor latents = at::randn({2, 16, 3, 8, 12}, kGpu), text = at::randn({2, 20, 32}, kGpu);
  const at::Tensor timestep = at::tensor({300.0f, 800.0f}, kGpu), direction = at::randn({2, 16, 3, 8, 12}, kGpu);
  const auto draw = [](const Dit& dit) {
    const at::NoGradGuard no_grad;
    at::manual_seed(9);
    for (const Parameter& p : dit.parameters()) {
      const double width = p.tensor.dim() > 1 ? double(p.tensor[0].numel()) : 10;
      at::Tensor values = p.tensor;
      values.add_(at::randn_like(values), 1 / std::sqrt(width));
    }
  };
  const auto outcome = [&](const char* pointwise, at::ScalarType dtype, bool checkpointing) {
    config.pointwise = pointwise;
    const auto dit = make_dit(config, attention, 4, at::kCUDA);
    draw(*dit);  // as made, it gives zeros
    ForwardOptions options;
    options.compute_dtype = dtype;
    options.recompute = RecomputePlan(std::vector<RecomputePolicy>(3, RecomputePolicy{checkpointing}));
    const at::Tensor out = dit->forward({latents, timestep, {{text}}}, options);
    (out * direction).sum().backward();
    std::vector<at::Tensor> all{out.detach()};
    for (const Parameter& p : dit->parameters()) all.push_back(p.tensor.grad());
    return all;
  };
  const auto exact = outcome("auto", at::kDouble, false), plain = outcome("reference", at::kBFloat16, false);
  const auto found = outcome("auto", at::kBFloat16, false), again = outcome("auto", at::kBFloat16, true);
  double plain_error = 0, found_error = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double size = exact[i].to(at::kDouble).norm().item<double>();
    const auto error = [&](const at::Tensor& one) {
      return (one.to(at::kDouble) - exact[i]).norm().item<double>() / size;
    };
    plain_error += error(plain[i]) / double(exact.size());
    found_error += error(found[i]) / double(exact.size());
    INFO(i << ": plain " << error(plain[i]) << ", kernels " << error(found[i]));
    CHECK(error(found[i]) <= 2 * error(plain[i]) + std::exp2(-8));
    CHECK(at::equal(found[i], again[i]));
  }
  CHECK(found_error <= 1.2 * plain_error);
}

TEST_CASE("cross attention over few keys errs no more in runs of queries than plain operations do", "[gpu]") {
  at::manual_seed(5);
  const auto made = [](int64_t tokens) { return at::randn({1, tokens, 12, 128}, at::kCUDA).to(at::kBFloat16); };
  const std::vector<at::Tensor> inputs = {made(8192), made(300), made(300)};
  const at::Tensor dout = made(8192);
  const auto gradients = [&](at::ScalarType dtype, const auto& attend) {
    std::vector<at::Tensor> x;
    for (const at::Tensor& input : inputs) x.push_back(input.to(dtype).detach().requires_grad_());
    at::Tensor out = attend(x);
    std::vector<at::Tensor> found = torch::autograd::grad({out}, x, {dout.to(dtype)});
    found.push_back(out.detach());
    return found;
  };
  const auto plain = [](const std::vector<at::Tensor>& x) {
    const at::Tensor scores = at::einsum("bind,bjnd->bnij", {x[0], x[1]}) / std::sqrt(128.0);
    return at::einsum("bnij,bjnd->bind", {scores.softmax(-1), x[2]});
  };
  const auto exact = gradients(at::kFloat, plain), rounded = gradients(at::kBFloat16, plain);
  const auto found = gradients(
      at::kBFloat16, [](const std::vector<at::Tensor>& x) { return attention::cross_attention(x[0], x[1], x[2]); });
  for (size_t i = 0; i < exact.size(); ++i) {
    const auto error = [&](const at::Tensor& x) { return (x.to(at::kFloat) - exact[i]).norm().item<double>(); };
    INFO(i << ": " << error(found[i]) << " of " << error(rounded[i]));
    CHECK(error(found[i]) <= 2 * error(rounded[i]));
  }
}
