#include "model/common/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "support/catch.h"

using namespace vmoba::model;

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

// exp(x), counted. Its gradient needs the result alone; a result that was kept is taken.
struct CountedExp : torch::autograd::Function<CountedExp> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Kept& kept, int* calls) {
    const at::Tensor known = kept.fetch("exp");
    if (!known.defined()) *calls += 1;
    const at::Tensor y = known.defined() ? known : x.exp();
    context->save_for_backward({y});
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {gradients[0] * context->get_saved_variables()[0], {}, {}};
  }
};

WeakStorage storage_of(const at::Tensor& tensor) {
  return WeakStorage(tensor.storage().getWeakStorageImpl());
}

// sin(b * exp(a * b)), and what happened on the way.
struct Body {
  int runs = 0, exps = 0;
  std::vector<bool> again = {};
  std::vector<WeakStorage> first = {};  // of exp(a * b) and of a * b, as the first run made them

  at::Tensor operator()(const std::vector<at::Tensor>& inputs, Kept& kept) {
    runs += 1;
    again.push_back(kept.again());
    const at::Tensor product = inputs[0] * inputs[1];
    const at::Tensor exponential = CountedExp::apply(product, kept, &exps);
    kept.keep("exp", exponential);
    kept.keep("product", product);
    if (!kept.again()) first = {storage_of(exponential), storage_of(product)};
    return (exponential * inputs[1]).sin();
  }
};

struct Outcome {
  at::Tensor output, gradient_a, gradient_b;
};

at::Tensor values(double first, double last) {
  return at::linspace(first, last, 7, at::kDouble);
}

Outcome run(Body& body, const RecomputePolicy& policy) {
  const at::Tensor a = values(-1, 1).requires_grad_(true), b = values(0.5, 2).requires_grad_(true);
  const at::Tensor output =
      recompute_in_backward([&](const auto& inputs, Kept& kept) { return body(inputs, kept); }, {a, b}, policy);
  output.sum().backward();
  return {output.detach(), a.grad(), b.grad()};
}

}  // namespace

TEST_CASE("output and gradients are the same whatever is recomputed, and what is kept is not computed again") {
  struct Case {
    RecomputePolicy policy;
    int runs, exps;
  };
  const at::Tensor a = values(-1, 1), b = values(0.5, 2), e = (a * b).exp();
  const at::Tensor outer = (b * e).cos();  // d sin(b e): db = e + b a e, da = b b e
  Body direct;
  const Outcome expected = run(direct, {});
  CHECK(at::allclose(expected.gradient_a, outer * b * b * e, 1e-12, 1e-14));
  CHECK(at::allclose(expected.gradient_b, outer * (e + a * b * e), 1e-12, 1e-14));
  for (const Case& c : {Case{{false, {"exp"}}, 1, 1}, Case{{true}, 2, 2}, Case{{true, {"exp"}}, 2, 1},
                        Case{{true, {"exp", "product", "another"}}, 2, 1}, Case{{true, {"product"}}, 2, 2}}) {
    INFO(c.policy.enabled << " " << c.policy.kept.size());
    Body body;
    const Outcome found = run(body, c.policy);
    CHECK(at::equal(found.output, expected.output));
    CHECK(at::equal(found.gradient_a, expected.gradient_a));
    CHECK(at::equal(found.gradient_b, expected.gradient_b));
    CHECK(body.runs == c.runs);
    CHECK(body.exps == c.exps);
    CHECK(body.again == (c.runs == 2 ? std::vector<bool>{false, true} : std::vector<bool>{false}));
  }
}

TEST_CASE("a kept tensor lives until backward has run, any other no longer than the first run") {
  Body body;
  const at::Tensor a = values(-1, 1).requires_grad_(true), b = values(0.5, 2);
  const at::Tensor output = recompute_in_backward([&](const auto& inputs, Kept& kept) { return body(inputs, kept); },
                                                  {a, b}, {true, {"exp"}});
  REQUIRE(body.first.size() == 2);
  CHECK_FALSE(body.first[0].expired());
  CHECK(body.first[1].expired());
  output.sum().backward();
  CHECK(body.first[0].expired());
  CHECK(output.defined());  // the graph's end is still held
}

TEST_CASE("a graph that is held can run backward again with what was kept") {
  Body body;
  const at::Tensor a = values(-1, 1).requires_grad_(true), b = values(0.5, 2);
  const at::Tensor sum =
      recompute_in_backward([&](const auto& inputs, Kept& kept) { return body(inputs, kept); }, {a, b}, {true, {"exp"}})
          .sum();
  sum.backward({}, /*retain_graph=*/true);
  const at::Tensor once = a.grad().clone();
  sum.backward();
  CHECK(at::equal(a.grad(), once * 2));
  CHECK(body.exps == 1);
}

TEST_CASE("nothing is kept where no gradient is asked for") {
  Body body;
  recompute_in_backward([&](const auto& inputs, Kept& kept) { return body(inputs, kept); },
                        {values(-1, 1), values(0.5, 2)}, {true, {"exp"}});
  CHECK(body.first.at(0).expired());
  const at::NoGradGuard no_grad;
  recompute_in_backward([&](const auto& inputs, Kept& kept) { return body(inputs, kept); },
                        {values(-1, 1).requires_grad_(true), values(0.5, 2)}, {true, {"exp"}});
  CHECK(body.first.at(0).expired());
  CHECK(body.again == std::vector<bool>{false, false});
}

TEST_CASE("a name that is kept twice is an error") {
  const auto body = [](const std::vector<at::Tensor>& inputs, Kept& kept) {
    kept.keep("x", inputs[0]);
    kept.keep("x", inputs[0]);
    return inputs[0] * 2;
  };
  const at::Tensor x = values(0, 1).requires_grad_(true);
  CHECK_THROWS_AS(recompute_in_backward(body, {x}, {true, {"x"}}), vmoba::Error);
  CHECK(recompute_in_backward(body, {x}, {true}).defined());
}
