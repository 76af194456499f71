// A parameter's values are a function of seed and name, wherever they are drawn. The case with the tag [gpu] needs one.
#include <ATen/ATen.h>

#include "core/random.h"
#include "model/common/parameters.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::model;

namespace {

// Odd sizes, around and beyond the values that share a stream index.
const std::vector<std::vector<int64_t>> kShapes = {{1}, {7, 3}, {65535}, {65536}, {65537, 3}, {300, 1001}};

}  // namespace

TEST_CASE("uniform parameters have the values of their streams") {
  const at::Tensor drawn = draw_parameter({"a.weight", {65536 + 5}, uniform(0.25)}, 3, at::kCPU).detach();
  for (const auto& [index, first, count] : {std::tuple{0, 0, 9}, {1, 65536, 5}}) {
    RandomStream stream(3, "init/a.weight", uint64_t(index));
    for (int64_t i = 0; i < count; ++i)
      CHECK(drawn[first + i].item<float>() == float(0.25 * (2 * stream.uniform() - 1)));
  }
  CHECK(drawn.abs().max().item<float>() <= 0.25F);
}

TEST_CASE("constant parameters") {
  const at::Tensor ones = draw_parameter({"a.weight", {3, 5}, constant(1)}, 3, at::kCPU);
  CHECK(ones.eq(1).all().item<bool>());
  CHECK(ones.requires_grad());
  CHECK(ones.is_leaf());
}

TEST_CASE("a GPU draws the CPU's bits", "[gpu]") {
  for (const std::vector<int64_t>& shape : kShapes)
    for (const Init& init : {uniform(0.037), normal(0.02), constant(0.5)}) {
      const ParameterSpec spec{"blocks.7.attn1.to_q.weight", shape, init};
      const at::Tensor expected = draw_parameter(spec, 11, at::kCPU), drawn = draw_parameter(spec, 11, at::kCUDA);
      CHECK(drawn.is_cuda());
      CHECK(drawn.is_leaf());
      CHECK(drawn.requires_grad());
      CHECK(at::equal(drawn.detach().cpu(), expected.detach()));
    }
}
