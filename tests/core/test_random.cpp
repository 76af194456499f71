#include "core/random.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "support/catch.h"

using namespace vmoba;

TEST_CASE("Philox4x32-10 gives the known answers of Random123") {
  // Random123's tests/kat_vectors, lines "philox4x32 10".
  using Block = std::array<uint32_t, 4>;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("names are hashed with 64-bit FNV-1a") {
  // From the authors' test vectors (draft-eastlake-fnv).
  CHECK(hash_name("") == 0xcbf29ce484222325ull);
  CHECK(hash_name("a") == 0xaf63dc4c8601ec8cull);
  CHECK(hash_name("foobar") == 0x85944171f73967e8ull);
}

TEST_CASE("streams keep their values: checkpoints of older versions must resume alike") {
  // Made by the numpy program in scripts/make_scheduler_fixtures.py (philox, normals), not by this library.
  float normals[5];
  fill_normal(7, "sample_noise", 3, normals, 5);
  const double expected[5] = {-0.318075031042099, -0.012958486564457417, -0.3679486811161041, 1.4752492904663086,
                              0.9509360790252686};
  for (int i = 0; i < 5; ++i) CHECK(normals[i] == Approx(expected[i]).epsilon(1e-6));
  RandomStream words(123456789012345ull, "clip_start", 1ull << 40);
  for (uint64_t word : {0xfe445c480318c58bull, 0x3758cb477b39135ull, 0x2b295694d2d08ba0ull})
    CHECK(words.next_u64() == word);
}

TEST_CASE("a draw is a function of seed, stream and index") {
  const auto first = [](uint64_t seed, const char* stream, uint64_t index) {
    return RandomStream(seed, stream, index).next_u64();
  };
  CHECK(first(1, "noise", 5) == first(1, "noise", 5));
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 20; ++seed)
    for (const char* stream : {"noise", "timestep", "noisf", ""})
      for (uint64_t index : {0ull, 1ull, 2ull, 1ull << 32, 1ull << 63}) seen.insert(first(seed, stream, index));
  CHECK(seen.size() == 20 * 4 * 5);
  CHECK(first(1, "noise", 0) != first(uint64_t{1} << 32, "noise", 0));
}

TEST_CASE("fill_normal draws what the stream draws, whatever the count") {
  std::vector<float> whole(101), part(37);
  fill_normal(3, "noise", 9, whole.data(), 101);
  fill_normal(3, "noise", 9, part.data(), 37);
  CHECK(std::equal(part.begin(), part.end(), whole.begin()));
  RandomStream stream(3, "noise", 9);
  for (float value : whole) CHECK(value == float(stream.normal()));
  for (const int64_t skipped : {0, 2, 64, 100}) {
    std::vector<float> rest(size_t(101 - skipped));
    fill_normal(3, "noise", 9, rest.data(), int64_t(rest.size()), skipped);
    CHECK(std::equal(rest.begin(), rest.end(), whole.begin() + skipped));
  }
}

TEST_CASE("uniform numbers have a uniform's moments and bins") {
  constexpr int kCount = 200000;
  RandomStream random(11, "uniform", 0);
  double sum = 0, squares = 0, neighbours = 0, last = 0.5;
  std::array<int, 64> bins{};
  for (int i = 0; i < kCount; ++i) {
    const double u = random.uniform();
    REQUIRE(u >= 0.0);
    REQUIRE(u < 1.0);
    sum += u;
    squares += u * u;
    neighbours += (u - 0.5) * (last - 0.5);
    last = u;
    ++bins[size_t(u * 64)];
  }
  // Five standard errors: sd of u is 1/sqrt(12), of u^2 is sqrt(4/45), of a product of two centred ones 1/12.
  const double root = std::sqrt(double(kCount));
  CHECK(std::abs(sum / kCount - 0.5) < 5 * std::sqrt(1.0 / 12) / root);
  CHECK(std::abs(squares / kCount - 1.0 / 3) < 5 * std::sqrt(4.0 / 45) / root);
  CHECK(std::abs(neighbours / kCount) < 5 / 12.0 / root);
  double chi = 0;
  for (int bin : bins) chi += std::pow(bin - kCount / 64.0, 2) / (kCount / 64.0);
  CHECK(chi > 63 - 5 * std::sqrt(126.0));  // chi-squared of 63 degrees: mean 63, variance 126
  CHECK(chi < 63 + 5 * std::sqrt(126.0));
}

TEST_CASE("normals have a normal's moments and tails, and streams are independent") {
  constexpr int kCount = 200000;
  std::vector<float> a(kCount), b(kCount);
  fill_normal(1, "noise", 0, a.data(), kCount);
  fill_normal(1, "noise", 1, b.data(), kCount);
  double mean = 0, square = 0, cube = 0, fourth = 0, product = 0;
  int beyond_two = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = a[i];
    mean += x / kCount;
    square += x * x / kCount;
    cube += x * x * x / kCount;
    fourth += x * x * x * x / kCount;
    product += x * b[i] / kCount;
    beyond_two += std::abs(x) > 2;
  }
  const double root = std::sqrt(double(kCount));  // five standard errors: sd of x^k are 1, sqrt 2, sqrt 15, sqrt 96
  CHECK(std::abs(mean) < 5 / root);
  CHECK(std::abs(square - 1) < 5 * std::sqrt(2.0) / root);
  CHECK(std::abs(cube) < 5 * std::sqrt(15.0) / root);
  CHECK(std::abs(fourth - 3) < 5 * std::sqrt(96.0) / root);
  CHECK(std::abs(product) < 5 / root);
  const double p = std::erfc(2 / std::sqrt(2.0));
  CHECK(std::abs(beyond_two / double(kCount) - p) < 5 * std::sqrt(p * (1 - p)) / root);
}

TEST_CASE("below is unbiased and stays below") {
  for (uint64_t bound : {uint64_t{1}, uint64_t{2}, uint64_t{7}, (uint64_t{1} << 63) + 1, UINT64_MAX}) {
    RandomStream random(5, "below", bound);
    for (int i = 0; i < 1000; ++i) REQUIRE(random.below(bound) < bound);
  }
  RandomStream random(5, "dice", 0);
  std::array<int, 7> counts{};
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  for (int count : counts) CHECK(std::abs(count - 10000) < 5 * std::sqrt(70000.0 * (1.0 / 7) * (6.0 / 7)));
}

TEST_CASE("permutations hold each number once, and all orders come") {
  for (int64_t count : {0, 1, 2, 1000}) {
    auto order = random_permutation(1, "shuffle", 0, count);
    std::sort(order.begin(), order.end());
    std::vector<int64_t> expected(count);
    std::iota(expected.begin(), expected.end(), int64_t{0});
    CHECK(order == expected);
  }
  CHECK(random_permutation(1, "shuffle", 0, 100) == random_permutation(1, "shuffle", 0, 100));
  CHECK(random_permutation(1, "shuffle", 0, 100) != random_permutation(1, "shuffle", 1, 100));
  std::map<std::vector<int64_t>, int> orders;
  for (uint64_t epoch = 0; epoch < 6000; ++epoch) ++orders[random_permutation(2, "shuffle", epoch, 3)];
  REQUIRE(orders.size() == 6);
  for (const auto& [order, count] : orders) CHECK(std::abs(count - 1000) < 5 * std::sqrt(6000.0 / 6 * 5 / 6));
}
