#include "model/weights/safetensors.h"

#include <ATen/ATen.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "core/check.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

namespace {

namespace fs = std::filesystem;
using vmoba::model::NamedTensor;
using vmoba::model::SafetensorsFile;
using vmoba::model::write_safetensors;
using vmoba::test::contains;
using vmoba::test::TemporaryFolder;

void spit(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string with_length(const std::string& json, const std::string& data = "") {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) out[i] = char(uint64_t(json.size()) >> (8 * i));
  return out + json + data;
}

// The message of the Error(kInput) that reading `bytes` throws; "" where it is accepted.
std::string refusal(const std::string& bytes) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  spit(path, bytes);
  return vmoba::test::refusal_of([&] {
    const SafetensorsFile file(path);
    for (const auto& [name, info] : file.tensors()) file.tensor(name).clone();
  });
}

int run_python(const TemporaryFolder& folder, const std::string& program) {
  spit(folder.path() + "/program.py", program);
  return std::system(fmt::format("{} {}/program.py {}/", vmoba::test::python(), folder.path(), folder.path()).c_str());
}

const std::vector<at::ScalarType> kAllDtypes = {at::kBool,
                                                at::kByte,
                                                at::kChar,
                                                at::kShort,
                                                at::kInt,
                                                at::kLong,
                                                at::kUInt16,
                                                at::kUInt32,
                                                at::kUInt64,
                                                at::kHalf,
                                                at::kBFloat16,
                                                at::kFloat,
                                                at::kDouble,
                                                at::kComplexFloat,
                                                at::kFloat8_e4m3fn,
                                                at::kFloat8_e5m2,
                                                at::kFloat8_e8m0fnu,
                                                at::kFloat8_e4m3fnuz,
                                                at::kFloat8_e5m2fnuz};

}  // namespace

TEST_CASE("every dtype survives writing and reading, bit for bit") {
  const TemporaryFolder folder;
  std::vector<NamedTensor> tensors;
  for (const at::ScalarType dtype : kAllDtypes) {
    const int64_t size = int64_t(c10::elementSize(dtype));
    at::Tensor bytes = at::arange(6 * size, at::kByte);
    if (dtype == at::kBool) bytes = bytes.remainder(2);
    tensors.push_back({c10::toString(dtype), bytes.view(dtype).reshape({2, 3})});
  }
  tensors.push_back({"scalar", at::scalar_tensor(2.5, at::kDouble)});
  tensors.push_back({"empty", at::empty({3, 0, 2}, at::kFloat)});
  tensors.push_back({"strided", at::arange(6, at::kFloat).reshape({2, 3}).t()});
  write_safetensors(folder.path() + "/x.safetensors", tensors, {{"format", "pt"}, {"step", "7"}});
  const SafetensorsFile file(folder.path() + "/x.safetensors");
  REQUIRE(file.tensors().size() == tensors.size());
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"step", "7"}});
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    const at::Tensor back = file.tensor(name);
    REQUIRE(back.scalar_type() == tensor.scalar_type());
    REQUIRE(back.sizes() == tensor.sizes());
    if (tensor.numel() > 0)
      CHECK(back.reshape(-1).view(at::kByte).equal(tensor.contiguous().reshape(-1).view(at::kByte)));
  }
  CHECK(file.contains("scalar"));
  CHECK_FALSE(file.contains("scalars"));
}

TEST_CASE("a tensor outlives the file object, and the file's replacement") {
  const TemporaryFolder folder;
  at::Tensor kept;
  {
    write_safetensors(folder.path() + "/x.safetensors", {{"a", at::arange(1000, at::kFloat)}});
    const SafetensorsFile file(folder.path() + "/x.safetensors");
    kept = file.tensor("a");
  }
  write_safetensors(folder.path() + "/x.safetensors", {{"a", at::zeros({1000}, at::kFloat)}});
  CHECK(kept.equal(at::arange(1000, at::kFloat)));
}

TEST_CASE("the safetensors package reads our files and writes the same bytes") {
  const TemporaryFolder folder;
  const std::vector<NamedTensor> tensors = {{"b", at::arange(6, at::kFloat).reshape({2, 3})},
                                            {"a", at::arange(4, at::kFloat)},
                                            {"long", at::arange(-3, 2, at::kLong)},
                                            {"half", at::arange(3, at::kHalf)},
                                            {"byte", at::arange(5, at::kByte)},
                                            {"bool", at::arange(3, at::kByte).remainder(2).to(at::kBool)},
                                            {"double", at::full({1, 2}, 0.1, at::kDouble)},
                                            {"\xc3\xa9\"\n", at::ones({1}, at::kInt)}};
  write_safetensors(folder.path() + "/ours.safetensors", tensors, {{"format", "np"}});
  const int status = run_python(folder, R"(
import sys, numpy as np
from safetensors.numpy import load_file, save_file
folder = sys.argv[1]
expected = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(4, dtype=np.float32),
    "long": np.arange(-3, 2, dtype=np.int64), "half": np.arange(3, dtype=np.float16),
    "byte": np.arange(5, dtype=np.uint8), "bool": np.array([False, True, False]),
    "double": np.full((1, 2), 0.1), "\u00e9\"\n": np.ones(1, dtype=np.int32)}
found = load_file(folder + "ours.safetensors")
assert found.keys() == expected.keys(), found.keys()
for name, value in expected.items():
    assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
    assert (found[name] == value).all(), name
save_file(expected, folder + "theirs.safetensors", metadata={"format": "np"})
)");
  REQUIRE(status == 0);
  const SafetensorsFile theirs(folder.path() + "/theirs.safetensors");
  for (const auto& [name, tensor] : tensors) CHECK(theirs.tensor(name).equal(tensor));
  CHECK(theirs.metadata().at("format") == "np");
  CHECK(vmoba::test::read_text(folder.path() + "/ours.safetensors") ==
        vmoba::test::read_text(folder.path() + "/theirs.safetensors"));
}

TEST_CASE("a header length that is no multiple of 8 is read through an aligned copy") {
  std::string json = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  while (json.size() % 8 != 3) json += ' ';
  const TemporaryFolder folder;
  spit(folder.path() + "/x.safetensors", with_length(json, std::string("\0\0\x80\x3f\0\0\0\x40", 8)));
  const at::Tensor a = SafetensorsFile(folder.path() + "/x.safetensors").tensor("a");
  CHECK(reinterpret_cast<uintptr_t>(a.data_ptr()) % 4 == 0);
  CHECK(a.equal(at::arange(1, 3, at::kFloat)));
}

TEST_CASE("damaged files are refused with the reason") {
  const auto one = [](const std::string& entry, size_t data) {
    return refusal(with_length("{\"a\":" + entry + "}", std::string(data, '\0')));
  };
  CHECK(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 8).empty());
  CHECK(contains(refusal(""), "empty"));
  CHECK(
      contains(refusal(std::string("\0\0\0\0\0\0\0\x10", 8) + "{}"), "a length field (byte 0) of 1152921504606846976"));
  CHECK(contains(refusal(with_length("[]")), "expected '{'"));
  CHECK(contains(refusal(with_length("{\"a\"")), "JSON"));
  CHECK(contains(refusal(with_length("{} x")), "JSON"));
  CHECK(contains(refusal(with_length("{}", "x")), "bytes of no tensor"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 7), "truncated"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 9), "bytes of no tensor"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})", 8), "expected 12 bytes"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,16]})", 16), "begin at data byte 0"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", 8), "begin at data byte 0"));
  CHECK(contains(one(R"({"dtype":"F33","shape":[2],"data_offsets":[0,8]})", 8), "a dtype among BOOL"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", 8), "the number -2"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})", 8), "the number 2.0"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})", 8), "found less"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})", 8), "found less"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2]})", 8), "found less"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]})", 8), "one 'shape'"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})", 8), "a list"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})", 8), "the key 'x'"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[4611686018427387904,4,0],"data_offsets":[0,0]})", 0), "2^63"));
  CHECK(contains(one(R"({"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]})", 0), "2^63"));
  CHECK(contains(one(R"({"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,8]})", 8), "the number 1844"));
  CHECK(one(R"({"dtype":"BOOL","shape":[2],"data_offsets":[0,2]})", 2).empty());
  CHECK(contains(refusal(with_length(R"({"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}})", "\x02")), "0 or 1"));
  CHECK(contains(refusal(with_length(R"({"__metadata__":{"a":1}})")), "the number 1"));
  CHECK(contains(refusal(with_length(R"({"__metadata__":{"a":"1","a":"2"}})")), "twice"));
  const std::string entry = R"({"dtype":"U8","shape":[2],"data_offsets":[0,2]})";
  CHECK(contains(refusal(with_length("{\"a\\u0000b\":" + entry + "}", "xx")), "one behind 'a'; the file is damaged"));
  CHECK(
      contains(refusal(with_length("{\"__metadata__\":{\"k\":\"v\\u0000\"}}")), "one behind 'v'; the file is damaged"));
  CHECK(contains(refusal(with_length("{\"a\":" + entry + ",\"a\":" + entry + "}", "xx")), "'a' twice"));
  CHECK(contains(refusal(with_length("{\"a\":" + entry + ",\"b\":" + entry + "}", "xx")), "begin at data byte 2"));
  CHECK(contains(refusal(with_length("{\"a\":" + std::string(100000, '[') + "}")), "a list"));
  std::string dimensions = "1";
  for (int i = 0; i < 70; ++i) dimensions += ",1";
  CHECK(contains(one(R"({"dtype":"U8","shape":[)" + dimensions + R"(],"data_offsets":[0,1]})", 1), "at most 64"));
}

TEST_CASE("missing files and tensors are named") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(SafetensorsFile(folder.path() + "/none.safetensors"), vmoba::Error);
  CHECK_THROWS_AS(SafetensorsFile(folder.path() + "/"), vmoba::Error);
  write_safetensors(folder.path() + "/x.safetensors", {{"blocks.0.weight", at::zeros({1})}});
  const SafetensorsFile file(folder.path() + "/x.safetensors");
  try {
    file.tensor("block.0.weight");
    FAIL("found a tensor that is not there");
  } catch (const vmoba::Error& error) {
    CHECK(contains(error.what(), "nearest name is 'blocks.0.weight'"));
  }
}

TEST_CASE("a failed write leaves the old file and nothing else") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  write_safetensors(path, {{"a", at::ones({4})}});
  const std::string before = vmoba::test::read_text(path);
  CHECK_THROWS_AS(write_safetensors(path, {{"a", at::ones({4})}, {"a", at::ones({4})}}), vmoba::Error);
  CHECK_THROWS_AS(write_safetensors(path, {{"a", at::Tensor()}}), vmoba::Error);
  CHECK_THROWS_AS(write_safetensors(path, {{"a\xff", at::ones({4})}}), vmoba::Error);
  CHECK_THROWS_AS(write_safetensors(path, {{"__metadata__", at::ones({4})}}), vmoba::Error);
  CHECK_THROWS_AS(write_safetensors(folder.path() + "/none/x.safetensors", {{"a", at::ones({4})}}), vmoba::Error);
  CHECK(vmoba::test::read_text(path) == before);
  CHECK_FALSE(fs::exists(path + ".tmp"));
  // /dev/full takes no byte: the same code path as a full disk.
  if (fs::exists("/dev/full")) {
    fs::create_symlink("/dev/full", folder.path() + "/full.safetensors.tmp");
    CHECK_THROWS_AS(write_safetensors(folder.path() + "/full.safetensors", {{"a", at::ones({4})}}), vmoba::Error);
    CHECK_FALSE(fs::exists(folder.path() + "/full.safetensors"));
  }
}
