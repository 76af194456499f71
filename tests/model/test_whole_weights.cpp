// Weights that are not whole, or no weights at all, are refused by every way in, by name and with the cure.
#include <ATen/ATen.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/adapter/lora_file.h"
#include "model/convert.h"
#include "model/wan_fixture.h"
#include "model/weights/save.h"
#include "model/weights/weight_files.h"
#include "support/messages.h"
#include "support/process.h"
#include "support/stderr_capture.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;
using vmoba::test::TemporaryFolder;

constexpr const char* kFile = "diffusion_pytorch_model.safetensors";

std::vector<NamedTensor> weights_of(const std::string& fixture, const std::function<bool(const std::string&)>& kept) {
  const SafetensorsFile file(fixture_path(fixture + "/" + kFile));
  std::vector<NamedTensor> out;
  for (const auto& [name, info] : file.tensors())
    if (kept(name)) out.push_back({name, file.tensor(name)});
  return out;
}

struct Fixture {
  explicit Fixture(const std::string& name = "wan_t2v", bool with_config = true) : name(name) {
    fs::create_directories(in());
    if (with_config) fs::copy_file(fixture_path(name + "/config.json"), in() + "/config.json");
  }
  std::string in() const { return folder.path() + "/in"; }

  // What vmoba-convert says of the weights without those that `kept` denies.
  std::string conversion(const std::function<bool(const std::string&)>& kept) const {
    write_safetensors(in() + "/" + kFile, weights_of(name, kept));
    return conversion();
  }
  std::string conversion() const {
    ConvertOptions options;
    options.in = in();
    options.out = folder.path() + "/out";
    options.layout = "diffusers";
    if (!fs::exists(in() + "/config.json")) options.head_dim = name == "wan_t2v" ? 20 : 12;
    return refusal_of([&] { convert_weights(options); });
  }

  std::string name;
  TemporaryFolder folder;
};

std::function<bool(const std::string&)> without(const std::string& name) {
  return [name](const std::string& found) { return found != name; };
}
std::function<bool(const std::string&)> without_beginning(const std::string& beginning) {
  return [beginning](const std::string& found) { return !found.starts_with(beginning); };
}

// A sharded copy of wan_t2v whose index can be changed.
struct Shards {
  Shards() {
    save_transformer(folder.path(), "{}", tensors_to_write(weights_of("wan_t2v", [](const auto&) { return true; })),
                     40'000);
    index = nlohmann::json::parse(vmoba::test::read_text(index_path()));
  }
  std::string index_path() const { return folder.path() + "/" + kTransformerIndex; }
  std::string loading() const {
    std::ofstream(index_path()) << index.dump();
    ModelConfig config = wan_t2v_config();
    config.weights = folder.path();
    return refusal_of([&] { check_weights(config); });
  }
  TemporaryFolder folder;
  nlohmann::json index;
};

}  // namespace

TEST_CASE("vmoba-convert refuses a transformer that lacks any tensor") {
  const Fixture fixture;
  CHECK(fixture.conversion([](const auto&) { return true; }).empty());
  for (const NamedTensor& tensor : weights_of("wan_t2v", [](const auto&) { return true; })) {
    INFO(tensor.name);
    const std::string message = fixture.conversion(without(tensor.name));
    CHECK(contains(message, tensor.name));
  }
}

TEST_CASE("a file with a hole where a download stopped is said, and one whose download goes on is refused") {
  const Fixture fixture;
  std::vector<NamedTensor> weights = weights_of("wan_t2v", [](const auto&) { return true; });
  for (NamedTensor& tensor : weights)
    if (tensor.name.starts_with("blocks.1.")) tensor.tensor = at::zeros_like(tensor.tensor);
  write_safetensors(fixture.in() + "/" + kFile, weights);
  const std::string said = vmoba::test::capture_stderr([&] { CHECK(fixture.conversion().empty()); });
  CHECK(contains(said, " matrices hold zeros alone, among them blocks.1."));
  CHECK_FALSE(contains(vmoba::test::capture_stderr([&] { fixture.conversion([](const auto&) { return true; }); }),
                       "zeros alone"));
  std::ofstream(fixture.in() + "/" + kFile + ".aria2") << "";
  CHECK(contains(fixture.conversion(), "download did not finish"));
}

TEST_CASE("whole blocks that are missing are found: the last by config.json, others without it") {
  CHECK(contains(Fixture().conversion(without_beginning("blocks.1.")), "missing: 27 (blocks.1."));
  const Fixture bare("wan_t2v", /*with_config=*/false);
  CHECK(contains(bare.conversion(without_beginning("blocks.0.ffn.net.2")), "missing: 2 (blocks.0.ffn.net.2."));
  CHECK(contains(bare.conversion(without_beginning("blocks.0.norm2.")), "blocks.0.norm2.bias"));
  CHECK(contains(bare.conversion(without_beginning("blocks.1.attn1.to_q")), "blocks.1.attn1.to_q.bias"));
}

TEST_CASE("image layers that config.json asks for are missed") {
  const Fixture fixture("wan_i2v");
  CHECK(fixture.conversion([](const auto&) { return true; }).empty());
  const std::string none = fixture.conversion([](const std::string& name) {
    return !name.starts_with("condition_embedder.image_embedder.") && name.find("add_") == std::string::npos &&
           name.find("norm_added") == std::string::npos;
  });
  CHECK(contains(none, "condition_embedder.image_embedder."));
  CHECK(contains(fixture.conversion(without("condition_embedder.image_embedder.norm1.weight")), "norm1.weight"));
}

TEST_CASE("a tensor of another shape is refused on conversion") {
  const Fixture fixture;
  std::vector<NamedTensor> tensors = weights_of("wan_t2v", [](const auto&) { return true; });
  for (NamedTensor& named : tensors)
    if (named.name == "blocks.1.attn2.to_k.bias") named.tensor = at::zeros({39});
  write_safetensors(fixture.in() + "/" + kFile, tensors);
  CHECK(contains(fixture.conversion(), "blocks.1.attn2.to_k.bias: expected 40, found Float 39"));
}

TEST_CASE("an index and its shards agree") {
  const Shards plain;
  CHECK(plain.loading().empty());
  Shards more;
  more.index["weight_map"]["blocks.7.attn1.to_q.weight"] = more.index["weight_map"]["proj_out.bias"];
  CHECK(contains(more.loading(), "'blocks.7.attn1.to_q.weight' is not in"));
  Shards less;
  less.index["weight_map"].erase("proj_out.bias");
  CHECK(contains(less.loading(), "'proj_out.bias' is in"));
  Shards moved;
  moved.index["weight_map"]["proj_out.bias"] = moved.index["weight_map"]["blocks.0.attn1.to_q.weight"];
  CHECK(contains(moved.loading(), "'proj_out.bias'"));
}

TEST_CASE("shards that are missing, or alone, are named") {
  const Shards shards;
  const std::string first =
      shards.folder.path() + "/diffusion_pytorch_model-00001-of-" +
      find_weight_files(shards.folder.path()).back().substr(find_weight_files(shards.folder.path()).back().size() - 17);
  REQUIRE(fs::exists(first));
  ModelConfig config = wan_t2v_config();
  config.weights = first;
  CHECK(contains(refusal_of([&] { check_weights(config); }), "expected a whole model"));
  fs::remove(first);
  CHECK(contains(shards.loading(), "1 missing: diffusion_pytorch_model-00001-of-"));
}

TEST_CASE("every way in says what came in place of a file of weights") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors", out = folder.path() + "/out";
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2837529104\n";
  std::ofstream(path) << pointer;
  ModelConfig config = wan_t2v_config();
  config.weights = path;
  ConvertOptions options;
  options.in = path;
  options.out = out;
  options.layout = "diffusers";
  const auto says = [&](const std::string& words) {
    CHECK(contains(refusal_of([&] { check_weights(config); }), words));
    CHECK(contains(refusal_of([&] { convert_weights(options); }), words));
    CHECK(contains(refusal_of([&] { read_lora(path, wan_row(), at::kCPU); }), words));
  };
  says("git lfs pull");
  std::ofstream(path) << "<!DOCTYPE html><html></html>";
  says("HTML page");
  std::ofstream(path, std::ios::trunc).close();
  says("empty file");
  fs::remove(path);
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  says("FIFO");
  fs::remove(path);
  fs::create_symlink("../blobs/gone", path);
  says("which is not there");
  // A folder with a pickle alone, and an index that is a pointer.
  fs::remove(path);
  std::ofstream(folder.path() + "/pytorch_model.bin") << "PK\x03\x04" + std::string(26, '\0') + "archive/data.pkl";
  config.weights = options.in = folder.path();
  CHECK(contains(refusal_of([&] { check_weights(config); }), "'pytorch_model.bin', a pickle"));
  std::ofstream(folder.path() + "/" + kTransformerIndex) << pointer;
  CHECK(contains(refusal_of([&] { check_weights(config); }), "git lfs pull"));
}
