// Expected values: Python's xxhash (xxhash.xxh64(data[:n]).intdigest()), data[i] = (7 i + i/256) mod 256.
#include <algorithm>
#include <fstream>

#include "core/hash.h"
#include "support/catch.h"
#include "support/messages.h"

using namespace vmoba;

namespace {

std::string data(size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += char((7 * i + i / 256) % 256);
  return out;
}

struct Golden {
  size_t bytes;
  uint64_t hash;
};
constexpr Golden kGolden[] = {{0, 0xEF46DB3751D8E999u},  {1, 0xE934A84ADB052768u},  {3, 0x9FF70A635A6209ABu},
                              {4, 0xAE5ACDC00A55AC41u},  {7, 0xD734A6B26F3DA63Eu},  {8, 0x87116B3365B924EBu},
                              {31, 0x0F187C62B1E722B7u}, {32, 0x91B0CB0931A8C629u}, {33, 0x931B043CF8D65B94u},
                              {63, 0x219110BF13E2FA26u}, {100, 0x8E2272C08247D5DBu}};

}  // namespace

TEST_CASE("content hashes are XXH64, in one piece and in many") {
  for (const Golden& golden : kGolden) {
    const std::string bytes = data(golden.bytes);
    CHECK(content_hash(bytes) == golden.hash);
    for (const size_t piece : {1, 5, 31, 32, 33}) {
      ContentHash hash;
      for (size_t at = 0; at < bytes.size(); at += piece) hash.add(std::string_view(bytes).substr(at, piece));
      CHECK(hash.value() == golden.hash);
    }
  }
  ContentHash seeded(42);
  seeded.add(data(100));
  CHECK(seeded.value() == 0x9bb39a008c03147cu);
  CHECK(hash_text(0xAB) == "00000000000000ab");
}

TEST_CASE("a file's hash is that of its bytes") {
  const std::string path = "/tmp/vmoba_test_hash";
  std::ofstream(path, std::ios::binary) << data(3 << 20);
  CHECK(file_hash(path) == content_hash(data(3 << 20)));
  CHECK(test::contains(test::refusal_of([] { file_hash("/nowhere/file"); }), "/nowhere/file"));
}

TEST_CASE("checksums of values do not depend on how the whole is cut, and see every change") {
  const std::string bytes = data(96);
  for (const int64_t width : {1, 2, 4, 8}) {
    const int64_t count = 96 / width;
    const uint64_t whole = values_checksum(bytes.data(), count, width, 0);
    for (int64_t cut = 0; cut <= count; ++cut)
      CHECK(values_checksum(bytes.data(), cut, width, 0) +
                values_checksum(bytes.data() + cut * width, count - cut, width, cut) ==
            whole);
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      std::string changed = bytes;
      changed[bit / 8] = char(changed[bit / 8] ^ (1 << bit % 8));
      CHECK(values_checksum(changed.data(), count, width, 0) != whole);
    }
    std::string swapped = bytes;
    std::swap_ranges(swapped.begin(), swapped.begin() + width, swapped.begin() + width);
    CHECK(values_checksum(swapped.data(), count, width, 0) != whole);
  }
  // Python: the sum over i of splitmix64's finalisation of (i + 1) * 0x9E3779B97F4A7C15 + value, modulo 2^64.
  const uint32_t values[] = {1, 2, 3};
  CHECK(values_checksum(values, 3, 4, 0) == 0xEDBE5CA3654F5804u);
  CHECK(values_checksum(values, 3, 4, 1000) == 0x07CE801700DFACCDu);
}
