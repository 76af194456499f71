// Random damage to safetensors headers: an Error or a valid header, never a crash, hang or wild allocation.
#include <cstdint>
#include <string>

#include "core/check.h"
#include "core/random.h"
#include "model/weights/safetensors_header.h"
#include "support/catch.h"

namespace {

using vmoba::RandomStream;
using vmoba::model::parse_safetensors_header;
using vmoba::model::SafetensorsHeader;

// Two tensors, metadata, 48 bytes of data; made by hand.
std::string small_file() {
  std::string json = R"({"__metadata__":{"format":"pt"},"weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},)"
                     R"("bias":{"dtype":"BF16","shape":[8],"data_offsets":[32,48]}})";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string file(8, '\0');
  for (int i = 0; i < 8; ++i) file[i] = char(uint64_t(json.size()) >> (8 * i));
  return file + json + std::string(48, '\x3f');
}

void damage(std::string& bytes, RandomStream& random) {
  static const std::string kSyntax = "{}[]\":,0123456789-eE.\\u tfn";
  const size_t at = random.below(bytes.size());
  switch (random.below(6)) {
    case 0:
      bytes[at] = char(random.below(256));
      break;
    case 1:
      bytes[at] = kSyntax[random.below(kSyntax.size())];
      break;
    case 2:
      bytes.resize(at);
      break;
    case 3:
      bytes.erase(at, 1 + random.below(8));
      break;
    case 4:
      bytes.insert(at, bytes.substr(random.below(bytes.size()), 1 + random.below(40)));
      break;
    default:
      bytes[random.below(std::min<size_t>(8, bytes.size()))] = char(random.below(256));
      break;
  }
}

// Returns how many damaged files were accepted; those must describe memory inside the file.
int64_t run_cases(int64_t cases) {
  const std::string whole = small_file();
  int64_t accepted = 0;
  for (int64_t i = 0; i < cases; ++i) {
    RandomStream random(1, "safetensors-fuzz", uint64_t(i));
    std::string bytes = whole;
    for (uint64_t n = 1 + random.below(3); n > 0 && !bytes.empty(); --n) damage(bytes, random);
    try {
      const SafetensorsHeader header = parse_safetensors_header(bytes, int64_t(bytes.size()), "memory");
      ++accepted;
      for (const auto& [name, info] : header.tensors) {
        if (info.begin < 0 || header.data_begin + info.end > int64_t(bytes.size())) FAIL("outside the file: " << name);
      }
    } catch (const vmoba::Error& error) {
      if (error.kind() != vmoba::ErrorKind::kInput) FAIL("not an input error: " << error.what());
    }
  }
  return accepted;
}

}  // namespace

TEST_CASE("an undamaged header is accepted") {
  const std::string bytes = small_file();
  const SafetensorsHeader header = parse_safetensors_header(bytes, int64_t(bytes.size()), "memory");
  CHECK(header.tensors.size() == 2);
  CHECK(header.tensors.at("bias").begin == 32);
}

TEST_CASE("100,000 damaged headers end in an error or a sound header") {
  const int64_t accepted = run_cases(100'000);
  INFO("accepted " << accepted);
  CHECK(accepted > 0);  // bytes of data, names and spaces may change without harm
  CHECK(accepted < 60'000);
}

TEST_CASE("millions of damaged headers", "[fuzz]") {
  CHECK(run_cases(5'000'000) > 0);
}
