// The optimisers that keep less or do more than AdamW in fp32: 8-bit moments against bitsandbytes' AdamW8bit, Muon
// against torch.optim.Muon (scripts/make_optimizer_fixtures.py), stochastic rounding against its definition; exact over
// resume, and the same bits on a GPU and a CPU.
#include <ATen/ATen.h>

#include <cmath>

#include "core/random.h"
#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/paths.h"
#include "train/optim/gradients.h"
#include "train/optim/muon.h"
#include "train/optim/optimizer.h"
#include "train/optim/tensor_updates.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

using Parameters = std::vector<model::Parameter>;

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kFloat) - b.to(at::kFloat)).abs().max().item<double>();
}

at::Tensor normals(const char* stream, uint64_t index, at::IntArrayRef shape) {
  const at::Tensor out = at::empty(shape, at::kFloat);
  fill_normal(3, stream, index, out.mutable_data_ptr<float>(), out.numel());
  return out;
}

OptimizerConfig config_of(const std::string& type) {
  OptimizerConfig config;
  config.type = type;
  config.betas = {0.9, 0.95};
  config.weight_decay = 0.1;
  return config;
}

// Matrices and a vector, sizes that are no multiples of a block; weights in `dtype`, vectors in fp32.
Parameters make_parameters(at::ScalarType dtype, at::Device device = at::kCPU) {
  const auto matrix = [&](const char* name, at::IntArrayRef shape) {
    return model::Parameter{name, normals(name, 0, shape).to(dtype).to(device).requires_grad_()};
  };
  return {matrix("blocks.0.to_q.weight", {70, 90}),
          matrix("blocks.0.to_k.weight", {70, 90}),
          matrix("blocks.1.up.weight", {100, 50}),
          matrix("head.weight", {61, 83}),
          {"blocks.0.to_q.bias", normals("bias", 0, {90}).to(device).requires_grad_()}};
}

void set_gradients(const Parameters& parameters, uint64_t step) {
  for (const model::Parameter& p : parameters) {
    at::Tensor parameter = p.tensor;
    parameter.mutable_grad() =
        (0.1 * normals(p.name.c_str(), step + 1, p.tensor.sizes())).to(p.tensor.scalar_type()).to(p.tensor.device());
  }
}

void check_equal(const Parameters& a, const Parameters& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    INFO(a[i].name);
    CHECK(at::equal(a[i].tensor.detach().cpu(), b[i].tensor.detach().cpu()));
  }
}

const char* const kTypes[] = {"adamw", "adamw_8bit", "muon"};

}  // namespace

TEST_CASE("the codes of 8-bit moments are bitsandbytes' dynamic maps") {
  const model::SafetensorsFile file(test::fixtures() + "/optim/adamw_8bit.safetensors");
  for (const bool is_signed : {true, false}) {
    const updates::CodeTable& table = is_signed ? code_tables().first : code_tables().second;
    const at::Tensor expected = file.tensor(is_signed ? "map.signed" : "map.unsigned");
    REQUIRE(expected.numel() == 256);
    for (int64_t i = 0; i < 256; ++i)
      CHECK(table.values[i] == Approx(expected[i].item<double>()).epsilon(1e-6).margin(1e-12));
  }
}

TEST_CASE("8-bit AdamW follows bitsandbytes") {
  const model::SafetensorsFile file(test::fixtures() + "/optim/adamw_8bit.safetensors");
  Parameters parameters;
  for (const char* name : {"coded", "small"})
    parameters.push_back({name, file.tensor(std::string("start.") + name).clone().requires_grad_()});
  const auto optimizer = make_optimizer(config_of("adamw_8bit"), parameters);
  for (int step = 0; step < 5; ++step) {
    for (model::Parameter& p : parameters)
      p.tensor.mutable_grad() = file.tensor(fmt::format("grad.{}.{}", step, p.name)).clone();
    optimizer->step(3e-3);
    for (const model::Parameter& p : parameters) {
      const at::Tensor expected = file.tensor(fmt::format("after.{}.{}", step, p.name));
      const at::Tensor error = (p.tensor.detach() - expected).abs();
      // A moment at the bound between two codes may take either; its value then moves a weight of this step's size.
      CHECK((error > 1e-6).sum().item<int64_t>() <= p.tensor.numel() / 500);
      CHECK(error.max().item<double>() < 3e-3);
    }
  }
  for (const Optimizer::State& s : optimizer->state()) {
    if (s.parameter != 0) continue;
    const std::string& name = s.layout.name;
    const bool first = name.starts_with("exp_avg_8") || name == "exp_avg_scale";
    if (s.tensor.scalar_type() == at::kByte) {
      const at::Tensor difference =
          (s.tensor.to(at::kInt) - file.tensor(first ? "state1" : "state2").view(s.tensor.sizes()).to(at::kInt)).abs();
      CHECK(difference.max().item<int64_t>() <= 1);
      CHECK((difference > 0).sum().item<int64_t>() <= s.tensor.numel() / 500);
    } else {
      const at::Tensor expected = file.tensor(first ? "absmax1" : "absmax2");
      CHECK(((s.tensor - expected).abs() / expected).max().item<double>() < 1e-2);  // of a code's neighbour
    }
  }
}

TEST_CASE("a parameter can be kept from weight decay, by every optimiser") {
  for (const std::string type : kTypes)
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      INFO(type << " " << c10::toString(dtype));
      Parameters parameters = make_parameters(dtype), before = make_parameters(dtype);
      const auto optimizer = make_optimizer(config_of(type), parameters);
      for (size_t i : {size_t(1), size_t(4)}) optimizer->treat(i, {1, /*decays=*/false});
      for (model::Parameter& p : parameters) p.tensor.mutable_grad() = at::zeros_like(p.tensor);
      for (int step = 0; step < 3; ++step) optimizer->step(0.1);
      for (size_t i = 0; i < parameters.size(); ++i) {
        INFO(parameters[i].name);
        const bool same = at::equal(parameters[i].tensor, before[i].tensor);
        CHECK(same == (i == 1 || i == 4));
        if (same) continue;
        const at::Tensor shrunk = before[i].tensor.detach().to(at::kFloat) * std::pow(1 - 0.1 * 0.1, 3);
        CHECK(max_difference(parameters[i].tensor.detach(), shrunk) < (dtype == at::kFloat ? 1e-5 : 0.1));
      }
    }
}

TEST_CASE("Muon follows torch.optim.Muon, the rest AdamW") {
  const model::SafetensorsFile file(test::fixtures() + "/optim/muon.safetensors");
  for (const std::string adjust : {"original", "match_rms_adamw"}) {
    OptimizerConfig config = config_of("muon");
    config.matrix_lr = adjust == "original" ? "original" : "match_rms";
    Parameters parameters;
    for (int i = 0; i < 2; ++i)
      parameters.push_back({fmt::format("blocks.{}.up.weight", i),
                            file.tensor(fmt::format("{}.start.{}", adjust, i)).clone().requires_grad_()});
    parameters.push_back({"blocks.0.bias", at::ones({3}).requires_grad_()});
    parameters.push_back({"head.weight", at::ones({3, 5}).requires_grad_()});
    const auto muon = make_optimizer(config, parameters);
    Parameters rest = {{"blocks.0.bias", at::ones({3}).requires_grad_()},
                       {"head.weight", at::ones({3, 5}).requires_grad_()}};
    const auto adamw = make_optimizer(config_of("adamw"), rest);
    for (int step = 0; step < 4; ++step) {
      for (int i = 0; i < 2; ++i)
        parameters[size_t(i)].tensor.mutable_grad() =
            file.tensor(fmt::format("{}.grad.{}.{}", adjust, step, i)).clone();
      for (int i = 0; i < 2; ++i) {
        const at::Tensor gradient = at::full_like(rest[size_t(i)].tensor, 0.3 + step).detach();
        rest[size_t(i)].tensor.mutable_grad() = gradient;
        parameters[size_t(2 + i)].tensor.mutable_grad() = gradient.clone();
      }
      muon->step(2e-3);
      adamw->step(2e-3);
      for (int i = 0; i < 2; ++i) {
        const at::Tensor expected = file.tensor(fmt::format("{}.after.{}.{}", adjust, step, i));
        // Entries of the change are at most 1, times the learning rate of at most 2e-3 * 0.2 * sqrt(40); bf16 has 8
        // bits, and four steps add up.
        CHECK(max_difference(parameters[size_t(i)].tensor.detach(), expected) < 4 * 2.6e-3 / 128);
      }
    }
    for (size_t i = 0; i < 2; ++i)
      CHECK(max_difference(parameters[2 + i].tensor.detach(), rest[i].tensor.detach()) < 1e-6);
  }
}

TEST_CASE("Newton-Schulz brings singular values near 1") {
  for (const auto& shape : {std::vector<int64_t>{48, 32}, {32, 48}, {40, 40}}) {
    const at::Tensor out = orthogonalized(normals("matrix", 0, shape), 5);
    CHECK(out.scalar_type() == at::kBFloat16);
    const at::Tensor values = at::linalg_svdvals(out.to(at::kFloat));
    CHECK(values.max().item<double>() < 1.3);
    CHECK(values.narrow(0, 0, 30).min().item<double>() > 0.5);  // the smallest of a square one may stay small
  }
}

TEST_CASE("Muon takes the matrices of numbered blocks alone") {
  const auto takes = [](const char* name, at::IntArrayRef shape) { return takes_muon({name, at::zeros(shape)}); };
  CHECK(takes("blocks.0.attn1.to_q.weight", {8, 8}));
  CHECK(takes("transformer_blocks.12.ffn.net.2.weight", {8, 4}));
  CHECK(takes("blocks.3.attn1.to_q.lora_A.weight", {4, 8}));
  CHECK_FALSE(takes("blocks.0.attn1.to_q.bias", {8}));
  CHECK_FALSE(takes("blocks.0.scale_shift_table", {1, 6, 8}));
  CHECK_FALSE(takes("proj_out.weight", {8, 8}));
  CHECK_FALSE(takes("condition_embedder.time_embedder.linear_1.weight", {8, 8}));
  CHECK_FALSE(takes("patch_embedding.weight", {8, 4, 1, 2, 2}));
}

TEST_CASE("a weight in bf16 takes the neighbour that its draw says") {
  // One update with lr 0 and no decay writes the weight as it is: nothing is lost.
  OptimizerConfig config;
  config.weight_decay = 0;
  Parameters parameters = {{"w", normals("w", 0, {1000}).to(at::kBFloat16).requires_grad_()}};
  const at::Tensor before = parameters[0].tensor.detach().clone();
  const auto optimizer = make_optimizer(config, parameters, Placement{7});
  parameters[0].tensor.mutable_grad() = at::ones_like(before);
  optimizer->step(0);
  CHECK(at::equal(parameters[0].tensor.detach(), before));
  // With gradients of 1 the moments' ratio is 1 (eps is too small to count): the weight moves by lr.
  const double lr = 1e-4;
  optimizer->step(lr);
  const auto key = stream_key(7, "round/w");
  const at::Tensor exact = before.to(at::kFloat) - float(lr);
  const float* values = exact.const_data_ptr<float>();
  const auto* found = parameters[0].tensor.detach().view(at::kShort).const_data_ptr<int16_t>();
  int64_t differing = 0;
  for (uint32_t i = 0; i < 1000; ++i) {
    const auto words = philox4x32({i / 8, 0, 2, 0}, key);  // the second update
    uint32_t bits = 0;
    std::memcpy(&bits, values + i, sizeof bits);
    const uint32_t draw = (words[i % 8 / 2] >> (16 * (i % 2))) & 0xFFFF;
    differing += int16_t((bits + draw) >> 16) != found[i];
  }
  CHECK(differing <= 2);  // the exact value is known to fp32's last bit only
}

TEST_CASE("stochastic rounding keeps what rounding to the nearest loses") {
  OptimizerConfig config;
  config.weight_decay = 0;
  Parameters parameters = {{"w", at::ones({20000}, at::kBFloat16).requires_grad_()}};
  const auto optimizer = make_optimizer(config, parameters, Placement{1});
  const double lr = 1e-4;  // a bf16 number below 1 has neighbours 2^-8 apart
  for (int step = 0; step < 50; ++step) {
    parameters[0].tensor.mutable_grad() = at::ones_like(parameters[0].tensor).detach();
    optimizer->step(lr);
  }
  // Steps of 1e-4 with a deviation of at most 2^-9 each: the mean of 20,000 is known to 5 * 2^-9 * sqrt(50 / 20000).
  const double mean = parameters[0].tensor.detach().to(at::kDouble).mean().item<double>();
  CHECK(std::abs(mean - (1 - 50 * lr)) < 5 * std::sqrt(50.0 / 20000) / 512);
}

TEST_CASE("state taken over goes on bit by bit") {
  for (const char* type : kTypes) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      INFO(type << ", " << dtype);
      Parameters a = make_parameters(dtype), b = make_parameters(dtype);
      const auto through = make_optimizer(config_of(type), a, Placement{5});
      for (uint64_t step = 0; step < 3; ++step) {
        set_gradients(a, step);
        through->step(1e-2);
      }
      const auto resumed = make_optimizer(config_of(type), b, Placement{5});
      const at::NoGradGuard no_grad;
      for (size_t i = 0; i < a.size(); ++i) b[i].tensor.copy_(a[i].tensor);
      for (size_t i = 0; i < through->state().size(); ++i) resumed->state()[i].tensor.copy_(through->state()[i].tensor);
      resumed->set_steps(3);
      for (uint64_t step = 3; step < 5; ++step) {
        set_gradients(a, step);
        set_gradients(b, step);
        through->step(1e-2);
        resumed->step(1e-2);
      }
      check_equal(a, b);
      CHECK_FALSE(at::equal(a[0].tensor, make_parameters(dtype)[0].tensor));
    }
  }
}

TEST_CASE("a factor scales gradients and a flag keeps the weights") {
  for (const char* type : kTypes) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      INFO(type << ", " << dtype);
      Parameters a = make_parameters(dtype), b = make_parameters(dtype);
      const auto scaled = make_optimizer(config_of(type), a), given = make_optimizer(config_of(type), b);
      set_gradients(a, 0);
      set_gradients(b, 0);
      for (model::Parameter& p : b) p.tensor.mutable_grad() = 0.5 * p.tensor.grad();  // exact
      scaled->step({1e-2, at::full({}, 0.5, at::kDouble), at::zeros({})});
      given->step(1e-2);
      check_equal(a, b);
      set_gradients(a, 1);
      for (model::Parameter& p : a) p.tensor.mutable_grad().fill_(NAN);
      scaled->step({1e-2, {}, at::ones({})});
      check_equal(a, b);
    }
  }
}

TEST_CASE("clipping multiplies by at most 1") {
  CHECK(clip_factor(at::full({}, 4.0), 1.0).item<double>() == 1.0 / (4.0 + 1e-6));
  CHECK(clip_factor(at::full({}, 0.5), 1.0).item<double>() == 1.0);
  CHECK_FALSE(clip_factor(at::full({}, 4.0), 0).defined());
}

TEST_CASE("8-bit moments take two bytes a value and the scales of blocks") {
  const Parameters parameters = {{"a", at::zeros({64, 100})}, {"b", at::zeros({4095})}};
  CHECK(optimizer_bytes(config_of("adamw_8bit"), parameters, 1) == 2 * 6400 + 8 * 25 + 8 * 4095);
  CHECK(optimizer_bytes(config_of("muon"), {{"blocks.0.a", at::zeros({64, 100})}}, 1) == 4 * 6400);
  CHECK(optimizer_bytes(config_of("adamw"), {{"a", at::zeros({64, 100}, at::kBFloat16)}}, 1) == 8 * 6400);
  CHECK(values_per_unit(config_of("adamw_8bit"), false) == 256);
  CHECK(values_per_unit(config_of("adamw"), true) == 8);
  CHECK(values_per_unit(config_of("adamw"), false) == 1);
}

TEST_CASE("a GPU computes the same bits as a CPU", "[gpu]") {
  for (const char* type : {"adamw_8bit", "adamw"}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      if (std::string(type) == "adamw" && dtype == at::kFloat) continue;  // ATen's
      INFO(type << ", " << dtype);
      Parameters cpu = make_parameters(dtype), gpu = make_parameters(dtype, at::kCUDA);
      const auto there = make_optimizer(config_of(type), cpu, Placement{5}),
                 here = make_optimizer(config_of(type), gpu, Placement{5});
      for (uint64_t step = 0; step < 5; ++step) {
        set_gradients(cpu, step);
        set_gradients(gpu, step);
        there->step({1e-2, at::full({}, 0.7), at::zeros({})});
        here->step({1e-2, at::full({}, 0.7, at::kCUDA), at::zeros({}, at::kCUDA)});
      }
      check_equal(cpu, gpu);
      for (size_t i = 0; i < here->state().size(); ++i)
        CHECK(at::equal(here->state()[i].tensor.cpu(), there->state()[i].tensor));
    }
  }
}

TEST_CASE("Muon on a GPU differs from a CPU by its products' rounding", "[gpu]") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Parameters cpu = make_parameters(dtype), gpu = make_parameters(dtype, at::kCUDA);
    const auto there = make_optimizer(config_of("muon"), cpu, Placement{5}),
               here = make_optimizer(config_of("muon"), gpu, Placement{5});
    set_gradients(cpu, 0);
    set_gradients(gpu, 0);
    there->step(1e-2);
    here->step(1e-2);
    // lr * 0.2 * sqrt(100) times bf16's 2^-7 of an entry of at most 1, and a bf16 weight's last bit (below 4: 2^-6).
    const double rounding = dtype == at::kBFloat16 ? std::pow(2.0, -6) : 1e-6;
    for (size_t i = 0; i < 3; ++i)
      CHECK(max_difference(cpu[i].tensor.detach(), gpu[i].tensor.detach().cpu()) < 2e-2 / 64 + rounding);
    for (size_t i = 3; i < 5; ++i) CHECK(at::equal(cpu[i].tensor.detach(), gpu[i].tensor.detach().cpu()));
  }
}
