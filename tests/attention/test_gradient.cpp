// Gradients against central differences in double precision, with the selection held constant.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include "apps/bench/attention_cases.h"
#include "attention/dispatch.h"
#include "attention/reference/reference.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;
using bench::AttentionCase;
using bench::case_tensor;

namespace {

constexpr double kStep = 1e-5;  // truncation about kStep^2, rounding about 1e-16 / kStep

struct Inputs {
  std::vector<at::Tensor> qkv;
  at::Tensor weight;
};

Inputs inputs_of(const AttentionCase& c) {
  return {{case_tensor(c, "q"), case_tensor(c, "k"), case_tensor(c, "v")}, case_tensor(c, "weight")};
}

struct Evaluation {
  double loss;
  at::Tensor mask;  // undefined for full attention
};

Evaluation evaluate(const AttentionCase& c, const std::vector<at::Tensor>& x, const at::Tensor& weight) {
  const at::Tensor out = self_attention(x[0], x[1], x[2], c.grid, c.text_tokens, c.layer, nullptr, c.text_lengths);
  const double loss = (out * weight).sum().item<double>();
  if (!c.layer.sparse()) return {loss, {}};
  const BlockProblem problem = make_block_problem(x[0], c.grid, c.text_tokens, c.layer);
  return {loss, attends_BNCS(problem, block_select(reference::engine(), problem, x[0], x[1], x[2]))};
}

std::vector<at::Tensor> gradients(const AttentionCase& c, const Inputs& in) {
  std::vector<at::Tensor> x;
  for (const at::Tensor& t : in.qkv) x.push_back(t.clone().requires_grad_());
  const at::Tensor out = self_attention(x[0], x[1], x[2], c.grid, c.text_tokens, c.layer, nullptr, c.text_lengths);
  return torch::autograd::grad({out}, x, {in.weight});
}

// Central difference along `direction` of input i; the selection must be the same on both sides.
double difference_along(const AttentionCase& c, const Inputs& in, size_t i, const at::Tensor& direction) {
  const auto moved = [&](double step) {
    std::vector<at::Tensor> x = in.qkv;
    x[i] = x[i] + direction * step;
    return x;
  };
  const Evaluation up = evaluate(c, moved(kStep), in.weight), down = evaluate(c, moved(-kStep), in.weight);
  if (c.layer.sparse()) REQUIRE(at::equal(up.mask, down.mask));
  return (up.loss - down.loss) / (2 * kStep);
}

// Thousands of tiny calls: threads would only wait for each other.
struct OneThread {
  int before = at::get_num_threads();
  OneThread() { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before); }
};

}  // namespace

TEST_CASE("every case: gradients along random directions") {
  const OneThread one_thread;
  std::vector<AttentionCase> cases = bench::small_cases();
  for (const auto* more : {&bench::remainder_cases(), &bench::share_cases()})
    cases.insert(cases.end(), more->begin(), more->end());
  const AttentionCase c = GENERATE_REF(from_range(cases));
  DYNAMIC_SECTION(c.name) {
    const Inputs in = inputs_of(c);
    const auto d = gradients(c, in);
    for (size_t i = 0; i < 3; ++i)
      for (const char* name : {"a", "b", "c", "d"}) {
        INFO(c.name << ", input " << i << ", direction " << name);
        const at::Tensor direction = case_tensor(c, name) / std::sqrt(double(in.qkv[i].numel()));
        const double expected = difference_along(c, in, i, direction);
        CHECK((d[i] * direction).sum().item<double>() ==
              Approx(expected).epsilon(1e-7).margin(1e-8 * d[i].norm().item<double>()));
      }
  }
}

TEST_CASE("every element of q, k and v: sparse with text, and full") {
  const OneThread one_thread;
  AttentionCase c = {"elements", {2, 3, 3}, bench::threshold_layer({1, 2, 2}, Pool::kOverall, 0.3), 2, 1, 2, 3};
  for (const bool sparse : {true, false}) {
    if (!sparse) c.layer = {};
    const Inputs in = inputs_of(c);
    const auto d = gradients(c, in);
    for (size_t i = 0; i < 3; ++i) {
      const double largest = d[i].abs().max().item<double>();
      for (int64_t e = 0; e < in.qkv[i].numel(); ++e) {
        at::Tensor direction = at::zeros_like(in.qkv[i]);
        direction.view(-1)[e] = 1.0;
        const double found = d[i].contiguous().view(-1)[e].item<double>();
        INFO("sparse " << sparse << ", input " << i << ", element " << e);
        REQUIRE(std::abs(found - difference_along(c, in, i, direction)) < 1e-7 * largest);
      }
    }
  }
}
