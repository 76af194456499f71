// The seams that a further method uses: a select in tensor operations, learnt tensors, and a second branch that joins
// the softmax over blocks. The method of this test attends its own block exactly, and every other key through its
// branch with a learnt number added to the score: one softmax over all keys, which plain operations can compute.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "apps/bench/attention_cases.h"
#include "attention/block/engine.h"
#include "attention/method.h"
#include "core/check.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;
using bench::normal_tensor;

namespace {

constexpr Grid kGrid = {4, 2, 3};  // temporal blocks of two frames: tokens keep their order
constexpr int64_t kTokens = 24, kHeads = 3, kHeadDim = 8;
const double kScale = 1 / std::sqrt(double(kHeadDim));

// Bool [Z, Z]: the key lies in another block than the query.
at::Tensor other_block() {
  const at::Tensor block = at::arange(kTokens).floor_divide(12);
  return block.unsqueeze(0) != block.unsqueeze(1);
}

Selection own_block(const BlockProblem& problem, const at::Tensor& q, const at::Tensor&, const at::Tensor&,
                    at::TensorList) {
  const at::Tensor own_CS =
      at::arange(problem.tables->blocks, at::kInt).unsqueeze(1) == problem.tables->block_of_S.unsqueeze(0);
  return {BlockMask::of(own_CS.expand({q.size(0), q.size(2), -1, -1}), problem.text_tokens)};
}

at::Tensor branch_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& beta_N) {
  const at::Tensor scores = at::einsum("bind,bjnd->bnij", {q, k}) * kScale + beta_N.view({1, -1, 1, 1});
  return scores.masked_fill(other_block().logical_not(), -std::numeric_limits<double>::infinity());
}

Attended branch_attend(const BlockProblem&, const Selection&, const at::Tensor& q, const at::Tensor& k,
                       const at::Tensor& v, at::TensorList learnt) {
  const at::Tensor scores = branch_scores(q, k, learnt[0]);
  return {at::einsum("bnij,bjnd->bind", {scores.softmax(-1), v}), scores.logsumexp(-1)};
}

BranchGradients branch_backward(const BlockProblem&, const Selection&, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, at::TensorList learnt, const Attended& merged,
                                const at::Tensor& dout) {
  const at::Tensor p = (branch_scores(q, k, learnt[0]) - merged.lse_BNZ.unsqueeze(-1)).exp();
  const at::Tensor delta = (dout * merged.out_BZND).sum(-1).transpose(1, 2).unsqueeze(-1);
  const at::Tensor ds = p * (at::einsum("bind,bjnd->bnij", {dout, v}) - delta);
  return {at::einsum("bnij,bjnd->bind", {ds, k}) * kScale,
          at::einsum("bnij,bind->bjnd", {ds, q}) * kScale,
          at::einsum("bnij,bind->bjnd", {p, dout}),
          {ds.sum({0, 2, 3})}};
}

const Method& biased_rest() {
  static const ExtraBranch branch = {branch_attend, branch_backward};
  static const Method row = [] {
    Method m;
    m.name = "biased_rest";
    m.select = own_block;
    m.extra = [](const LayerAttention&) { return &branch; };
    m.learnt = [](const LayerAttention&, int64_t heads, int64_t) {
      return std::vector<LearntParameter>{{"beta", {heads}, 0.0}};
    };
    return m;
  }();
  return row;
}

LayerAttention layer() {
  LayerAttention out;
  out.method = &biased_rest();
  out.chunk = {2, 0, 0};
  return out;
}

at::Tensor expected_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta_N) {
  const at::Tensor rest = other_block().to(at::kDouble) * beta_N.view({1, -1, 1, 1});
  const at::Tensor scores = at::einsum("bind,bjnd->bnij", {q, k}) * kScale + rest;
  return at::einsum("bnij,bjnd->bind", {scores.softmax(-1), v});
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

}  // namespace

TEST_CASE("a method's learnt tensors are known by name, shape and first value") {
  const auto parameters = learnt_parameters(layer(), kHeads, kHeadDim);
  REQUIRE(parameters.size() == 1);
  CHECK(parameters[0].name == "beta");
  CHECK(parameters[0].shape == std::vector<int64_t>{kHeads});
  CHECK(parameters[0].initial == 0);
  CHECK(learnt_parameters(LayerAttention{}, kHeads, kHeadDim).empty());
}

TEST_CASE("both branches are one softmax, with gradients of q, k, v and what is learnt") {
  const auto leaf = [](const char* name, at::IntArrayRef shape) { return normal_tensor(name, shape).requires_grad_(); };
  const std::vector<int64_t> shape = {2, kTokens, kHeads, kHeadDim};
  const at::Tensor q = leaf("q", shape), k = leaf("k", shape), v = leaf("v", shape), beta = leaf("beta", {kHeads});
  const at::Tensor dout = normal_tensor("dout", shape);
  AttentionStats stats;
  const at::Tensor found = self_attention(q, k, v, kGrid, 0, layer(), &stats, {}, {beta});
  const at::Tensor expected = expected_attention(q, k, v, beta);
  CHECK(difference(found.detach(), expected.detach()) < 1e-12);
  const auto d = torch::autograd::grad({found}, {q, k, v, beta}, {dout});
  const auto e = torch::autograd::grad({expected}, {q, k, v, beta}, {dout});
  for (size_t i = 0; i < 4; ++i) CHECK(difference(d[i], e[i]) < 1e-12);
  CHECK(stats.densities().at("temporal") == Approx(0.5));  // of the blocks
}

TEST_CASE("a method's learnt tensors must be given") {
  const at::Tensor x = normal_tensor("x", {1, kTokens, kHeads, kHeadDim});
  CHECK_THROWS_AS(self_attention(x, x, x, kGrid, 0, layer(), nullptr), Error);
  CHECK_THROWS_AS(self_attention(x, x, x, kGrid, 0, LayerAttention{}, nullptr, {}, {x}), Error);
}
