#include "model/conditions.h"

#include <ATen/ATen.h>

#include <string>

#include "support/catch.h"

using namespace vmoba::model;

namespace {

// Two samples, every tensor defined.
Conditions full() {
  return {{at::arange(12, at::kFloat).view({2, 2, 3}), at::tensor({1, 2}, at::kLong), at::ones({2, 5}),
           at::arange(1, 17, at::kFloat).view({2, 4, 2}), at::tensor({3, 4}, at::kLong)},
          at::zeros({2, 4, 6}),
          at::tensor({6.0, 1.0}),
          at::tensor({0, 4}, at::kLong),
          at::tensor({850.0, 0.0})};
}

}  // namespace

TEST_CASE("every tensor of the conditions is visited once, under the name of its cache entry") {
  std::string names;
  const Conditions all = full();
  visit_tensors(all, [&](const char* name, const at::Tensor& tensor) {
    CHECK(tensor.defined());
    names += std::string(name) + " ";
  });
  CHECK(names == "embedding length pooled glyphs glyph_length image_tokens guidance image_length next_timestep ");
}

TEST_CASE("samples are cut out of every tensor that is there") {
  const Conditions second = narrow_samples(full(), 1, 1);
  CHECK(at::equal(second.text.tokens_BLE, full().text.tokens_BLE.slice(0, 1)));
  CHECK(at::equal(second.text.length_B, at::tensor({2}, at::kLong)));
  CHECK(second.text.pooled_BP.sizes() == at::IntArrayRef({1, 5}));
  CHECK(second.image_BIM.sizes() == at::IntArrayRef({1, 4, 6}));
  CHECK(second.guidance_B.item<double>() == 1.0);
  CHECK(second.next_timestep_B.item<double>() == 0.0);
  const Conditions text = narrow_samples({{full().text.tokens_BLE}}, 0, 1);
  CHECK_FALSE(text.image_BIM.defined());
  CHECK_FALSE(text.text.length_B.defined());
}

TEST_CASE("texts are stacked in their order, and only with texts of the same kind") {
  const TextEmbedding all = full().text;
  const TextEmbedding first = narrow_samples({all}, 0, 1).text, second = narrow_samples({all}, 1, 1).text;
  const TextEmbedding found = stack_samples({first, second});
  CHECK(at::equal(found.tokens_BLE, all.tokens_BLE));
  CHECK(at::equal(found.length_B, all.length_B));
  CHECK(at::equal(found.pooled_BP, all.pooled_BP));
  CHECK(at::equal(stack_samples({second, first}).length_B, at::tensor({2, 1}, at::kLong)));
  CHECK_FALSE(stack_samples({{first.tokens_BLE}}).pooled_BP.defined());
  CHECK_THROWS(stack_samples({first, {second.tokens_BLE, second.length_B}}));
}

TEST_CASE("glyph tokens of unequal number are stacked with zeros behind them") {
  TextEmbedding none = narrow_samples(full(), 0, 1).text;
  none.glyphs_BJU = none.glyphs_BJU.narrow(1, 0, 0);
  none.glyph_length_B = at::tensor({0}, at::kLong);
  const TextEmbedding second = narrow_samples(full(), 1, 1).text;
  const TextEmbedding found = stack_samples({none, second});
  CHECK(found.glyphs_BJU.sizes() == at::IntArrayRef({2, 4, 2}));
  CHECK(found.glyphs_BJU[0].eq(0).all().item<bool>());
  CHECK(at::equal(found.glyphs_BJU[1], second.glyphs_BJU[0]));
  CHECK(at::equal(found.glyph_length_B, at::tensor({0, 4}, at::kLong)));
}

TEST_CASE("on a device, lengths stay where models read them") {
  const TextEmbedding found = to_device(full().text, at::kMeta);
  CHECK(found.tokens_BLE.is_meta());
  CHECK(found.pooled_BP.is_meta());
  CHECK(found.glyphs_BJU.is_meta());
  CHECK(at::equal(found.length_B, full().text.length_B));
  CHECK(at::equal(found.glyph_length_B, full().text.glyph_length_B));
}
