#include <ATen/ATen.h>

#include <cmath>

#include "core/check.h"
#include "model/text/hash_text_encoder.h"
#include "support/catch.h"

using namespace vmoba::model;

namespace {

std::unique_ptr<TextEncoder> encoder(int64_t max_tokens = 8, int64_t dim = 4096) {
  TextEncoderConfig config;
  config.max_tokens = max_tokens;
  config.dim = dim;
  return make_text_encoder(config, at::kCPU);
}

double cosine(const at::Tensor& a, const at::Tensor& b) {
  return (at::dot(a, b) / (a.norm() * b.norm())).item<double>();
}

}  // namespace

TEST_CASE("words are lower-case runs of letters, digits and bytes beyond ASCII") {
  using Words = std::vector<std::string>;
  CHECK(split_words("") == Words{});
  CHECK(split_words(" ,.!\n") == Words{});
  CHECK(split_words("A red Lift, 2 metres-high.") == Words{"a", "red", "lift", "2", "metres", "high"});
  CHECK(split_words("caf\xc3\xa9 \xe7\x8c\xab") == Words{"caf\xc3\xa9", "\xe7\x8c\xab"});
}

TEST_CASE("embeddings are padded with zeros behind the end token and cut at the limit") {
  const TextEmbedding text = encoder()->encode({"", "two words", "a b c d e f g h i j"});
  const at::Tensor& e = text.tokens_BLE;
  REQUIRE(e.sizes() == at::IntArrayRef({3, 8, 4096}));
  const at::Tensor used = e.abs().sum(2).gt(0).sum(1);
  CHECK(used[0].item<int64_t>() == 1);
  CHECK(used[1].item<int64_t>() == 3);
  CHECK(used[2].item<int64_t>() == 8);
  CHECK(at::equal(text.length_B, at::tensor({1, 3, 8}, at::kLong)));
  CHECK_FALSE(text.pooled_BP.defined());
  // A cut prompt still ends with the end token, whose own part is shared: covariance 0.75 of two unit vectors.
  CHECK(cosine(e[0][0], e[2][7]) == Approx(0.75).margin(0.08));
}

TEST_CASE("values are standard normals that are a function of the words") {
  const at::Tensor e = encoder()->encode({"red lift", "red mirror", "lift red", "RED  lift!"}).tokens_BLE;
  const at::Tensor word = e[0][0];
  // 4096 draws: the mean deviates by 1/64, the variance by sqrt(2/4096) = 0.022; five of each.
  CHECK(std::abs(word.mean().item<double>()) < 5.0 / 64);
  CHECK(word.var().item<double>() == Approx(1.0).margin(5 * 0.0221));
  CHECK(at::equal(e[0], e[3]));
  CHECK(at::equal(e[0][0], e[1][0]));
  CHECK(std::abs(cosine(e[0][1], e[1][1])) < 5.0 / 64);
  // The same word behind another word: similar, not equal.
  CHECK(cosine(e[0][0], e[2][1]) == Approx(0.75).margin(0.08));
}

TEST_CASE("one prompt's embedding does not depend on its neighbours in the batch") {
  const at::Tensor alone = encoder()->encode({"a mirror in a dark hall"}).tokens_BLE;
  const at::Tensor together = encoder()->encode({"x", "a mirror in a dark hall", "y z"}).tokens_BLE;
  CHECK(at::equal(alone[0], together[1]));
}

TEST_CASE("the encoding of a word is fixed") {
  // Independent of this code: Philox4x32-10 and Box-Muller in scripts/make_text_fixture.py.
  const at::Tensor e = encoder(4, 4)->encode({"lift"}).tokens_BLE[0];
  const double expected[2][4] = {{-0.6540250, -1.3630529, -0.2201398, -1.2467366},
                                 {2.8615032, 0.2203670, -1.6079974, -0.1548210}};
  for (int token = 0; token < 2; ++token)
    for (int i = 0; i < 4; ++i) CHECK(e[token][i].item<double>() == Approx(expected[token][i]).margin(1e-6));
}

TEST_CASE("weights for the hash encoder are refused") {
  TextEncoderConfig config;
  config.weights = "umt5.safetensors";
  CHECK_THROWS_AS(make_text_encoder(config, at::kCPU), vmoba::Error);
}

TEST_CASE("a pooled text is there where its width is, a function of the words") {
  CHECK_FALSE(encoder()->encode({"a"}).pooled_BP.defined());
  TextEncoderConfig config;
  config.dim = 12;
  config.pooled_dim = 6;
  const auto pooling = make_text_encoder(config, at::kCPU);
  const at::Tensor found = pooling->encode({"", "red lift", "Red, lift!", "lift red"}).pooled_BP;
  REQUIRE(found.sizes() == at::IntArrayRef({4, 6}));
  CHECK(found[1].equal(found[2]));
  for (const int64_t other : {0, 3}) CHECK_FALSE(found[1].equal(found[other]));
  CHECK(at::isfinite(found).all().item<bool>());
}
