// Layouts of transformers: names both ways, scaled fp8, saving in shards, conversion, and the memory that loading
// takes.
#include <ATen/ATen.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <set>

#include "model/adapter/lora_file.h"
#include "model/convert.h"
#include "model/wan/wan_parameters.h"
#include "model/wan_fixture.h"
#include "model/weights/save.h"
#include "model/weights/weight_files.h"
#include "support/file_size_limit.h"
#include "support/messages.h"
#include "support/process.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;
using vmoba::test::TemporaryFolder;

std::vector<NamedTensor> fixture_weights() {
  const SafetensorsFile file(fixture_path("wan_t2v/diffusion_pytorch_model.safetensors"));
  std::vector<NamedTensor> out;
  for (const auto& [name, info] : file.tensors()) out.push_back({name, file.tensor(name)});
  return out;
}

const NameTable& original_names() {
  return layout_named(wan_row(), "original").names;
}

std::vector<NamedTensor> original_weights(const std::string& prefix) {
  std::vector<NamedTensor> out = fixture_weights();
  for (NamedTensor& named : out) named.name = prefix + original_names().from_diffusers(named.name).value();
  return out;
}

std::unique_ptr<Dit> load(const std::string& path, const std::string& weights_dtype = "fp32") {
  ModelConfig config = wan_t2v_config();
  config.weights = path;
  config.weights_dtype = weights_dtype;
  return make_dit(config, full_attention(), 0, at::kCPU);
}

const Parameter& parameter(const Dit& model, std::string_view name) {
  for (const Parameter& p : model.parameters())
    if (p.name == name) return p;
  throw std::runtime_error("no parameter " + std::string(name));
}

void check_fixture_weights(const Dit& model) {
  for (const NamedTensor& named : fixture_weights()) {
    INFO(named.name);
    CHECK(parameter(model, named.name).tensor.detach().equal(named.tensor));
  }
}

// Every file below a folder, by its path there.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      out[fs::relative(entry.path(), folder).string()] = vmoba::test::read_text(entry.path().string());
  return out;
}

ConvertOptions conversion(const std::string& in, const std::string& out, const std::string& layout) {
  ConvertOptions options;
  options.in = in;
  options.out = out;
  options.layout = layout;
  options.head_dim = 20;
  return options;
}

}  // namespace

TEST_CASE("every name of every Wan goes to the original layout and back") {
  ModelConfig config = wan_t2v_config();
  config.layers = 12;  // two digits
  config.image_dim = 10;
  config.own<WanConfig>().image_pos_tokens = 14;
  std::set<std::string> originals;
  for (const ParameterSpec& spec : wan_parameter_specs(config)) {
    INFO(spec.name);
    const auto original = original_names().from_diffusers(spec.name);
    REQUIRE(original.has_value());
    CHECK(originals.insert(*original).second);
    CHECK(original_names().to_diffusers(*original) == std::vector<std::string>{spec.name});
  }
  CHECK(originals.contains("img_emb.emb_pos"));
  CHECK(originals.contains("blocks.11.cross_attn.norm_k_img.weight"));
  for (const char* name : {"blocks.0.self_attn.qq.weight", "blocks.x.self_attn.q.weight", "head", "blocks.0."})
    CHECK(original_names().to_diffusers(name).empty());
}

TEST_CASE("the original layout and ComfyUI's load like diffusers', alone and among other models") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  for (const std::string prefix : {"", "diffusion_model.", "model.diffusion_model."}) {
    std::vector<NamedTensor> tensors = original_weights(prefix);
    if (prefix == "model.diffusion_model.") {
      tensors.push_back({"first_stage_model.decoder.conv.weight", at::zeros({1})});
      tensors.push_back({"text_encoders.umt5xxl.shared.weight", at::zeros({1})});
    }
    write_safetensors(path, tensors);
    check_fixture_weights(*load(path));
    check_fixture_weights(*load(folder.path()));  // the only file of a folder
  }
  std::vector<NamedTensor> tensors = original_weights("");
  for (NamedTensor& named : tensors)
    if (named.name == "blocks.1.ffn.2.bias") named.name = "blocks.1.ffn.3.bias";
  write_safetensors(path, tensors);
  const std::string message = refusal_of([&] { load(path); });
  CHECK(contains(message, "missing: 1 (blocks.1.ffn.2.bias)"));
  CHECK(contains(message, "unknown: 1 (blocks.1.ffn.3.bias)"));
  CHECK(contains(message, "original Wan layout"));
}

TEST_CASE("an original config.json is compared in its own keys") {
  const TemporaryFolder folder;
  write_safetensors(folder.path() + "/diffusion_pytorch_model.safetensors", original_weights(""));
  const auto with = [&](int64_t heads) {
    std::ofstream(folder.path() + "/config.json")
        << fmt::format(R"({{"_class_name":"WanModel","dim":40,"num_heads":{},"num_layers":2}})", heads);
  };
  with(2);
  CHECK_NOTHROW(load(folder.path()));
  with(4);
  CHECK(contains(refusal_of([&] { load(folder.path()); }), "expected attention_head_dim 20"));
}

TEST_CASE("scaled fp8 weights are values times scale: one, by row, by run of columns") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors", module = "blocks.0.self_attn.q";
  const at::Tensor values = at::linspace(-3, 3, 1600).view({40, 40}).to(at::kFloat8_e4m3fn);
  const at::Tensor exact = values.to(at::kFloat);
  const at::Tensor rows = at::linspace(0.5, 2, 40).view({40, 1}), runs = at::linspace(0.5, 2, 80).view({40, 2, 1});
  struct Case {
    std::string name;
    at::Tensor scale, expected;
  };
  const Case cases[] = {
      {"scale_weight", at::full({}, 0.25), exact * 0.25},
      {"weight_scale", at::full({1}, 0.25), exact * 0.25},
      {"scale_weight", rows, exact * rows},
      {"scale_weight", runs, (exact.view({40, 2, 20}) * runs).view({40, 40})},
  };
  for (const Case& c : cases) {
    INFO(c.name << " " << c.scale.sizes());
    std::vector<NamedTensor> tensors = original_weights("model.diffusion_model.");
    for (NamedTensor& named : tensors)
      if (named.name == "model.diffusion_model." + module + ".weight") named.tensor = values;
    tensors.push_back({"model.diffusion_model." + module + "." + c.name, c.scale});
    tensors.push_back({"model.diffusion_model." + module + ".scale_input", at::ones({})});
    tensors.push_back({"model.diffusion_model.scaled_fp8", at::zeros({2}).to(at::kFloat8_e4m3fn)});
    write_safetensors(path, tensors);
    CHECK(parameter(*load(path), "blocks.0.attn1.to_q.weight").tensor.detach().equal(c.expected));
    // Kept as in the file, and the map computes with the product.
    const auto kept = load(path, "fp8");
    const Parameter& q = parameter(*kept, "blocks.0.attn1.to_q.weight");
    CHECK(q.tensor.scalar_type() == at::kFloat8_e4m3fn);
    CHECK(q.tensor.to(at::kFloat).equal(exact));
    const at::Tensor x = at::linspace(-1, 1, 80).view({2, 40});
    CHECK(linear(x, {q.tensor, at::zeros({40}), ScaledWeight{q.scale}})
              .equal(at::linear(x, c.expected, at::zeros({40}))));
  }
  std::vector<NamedTensor> tensors = original_weights("");
  tensors.push_back({module + ".scale_weight", at::ones({7})});
  write_safetensors(path, tensors);
  CHECK(contains(refusal_of([&] { load(path); }), "scale_weight"));
}

TEST_CASE("weights are kept as model.weights_dtype says") {
  const std::string path = fixture_path("wan_t2v");
  const auto exact = load(path), half = load(path, "bf16"), fp8 = load(path, "fp8");
  const std::string q = "blocks.0.attn1.to_q.weight", patch = "patch_embedding.weight";
  CHECK(parameter(*half, q).tensor.equal(parameter(*exact, q).tensor.detach().to(at::kBFloat16)));
  CHECK(parameter(*half, "blocks.0.norm2.weight").tensor.scalar_type() == at::kFloat);
  CHECK(parameter(*half, "blocks.0.scale_shift_table").tensor.scalar_type() == at::kFloat);
  CHECK(parameter(*fp8, patch).tensor.scalar_type() == at::kBFloat16);
  const Parameter& quantised = parameter(*fp8, q);
  REQUIRE(quantised.tensor.scalar_type() == at::kFloat8_e4m3fn);
  // e4m3 has three bits behind the point: half a unit is 1/16 of the value, or of its row's smallest normal number.
  const at::Tensor expected = parameter(*exact, q).tensor.detach();
  const at::Tensor error = (scaled_weight(quantised.tensor, quantised.scale, at::kFloat) - expected).abs();
  const at::Tensor bound = expected.abs() / 16 + expected.abs().amax(1, true) * (0.015625 / 16 / 448) + 1e-7;
  CHECK((error <= bound).all().item<bool>());
}

TEST_CASE("a transformer is saved in shards with an index, and in one file once it fits") {
  const TemporaryFolder folder;
  const auto tensors = tensors_to_write(fixture_weights());
  const std::string index = folder.path() + "/diffusion_pytorch_model.safetensors.index.json";
  save_transformer(folder.path(), load(fixture_path("wan_t2v"))->config_json(), tensors, 40'000);
  CHECK(fs::exists(index));
  const auto shards = find_weight_files(folder.path());
  CHECK(shards.size() >= 4);
  for (const std::string& shard : shards) CHECK(fs::file_size(shard) < 40'000 + 8'000);  // and its header
  check_fixture_weights(*load(folder.path()));
  save_transformer(folder.path(), "{}", tensors);
  CHECK_FALSE(fs::exists(index));
  CHECK(find_weight_files(folder.path()).size() == 1);
  check_fixture_weights(*load(folder.path()));
}

TEST_CASE("a save that fails leaves what the folder held, and other files of it are nobody's business") {
  const TemporaryFolder folder;
  const auto tensors = tensors_to_write(fixture_weights());
  const std::string neighbour = folder.path() + "/diffusion_pytorch_model_lora.safetensors";
  std::ofstream(neighbour) << "x";
  save_transformer(folder.path(), load(fixture_path("wan_t2v"))->config_json(), tensors, 40'000);
  const auto before = contents(folder.path());
  CHECK(before.size() > 5);
  {
    const vmoba::test::FileSizeLimit limit(60'000);  // the single file does not fit
    CHECK_THROWS_AS(save_transformer(folder.path(), "{}", tensors), vmoba::Error);
  }
  CHECK(contents(folder.path()) == before);
  auto broken = tensors;
  broken.back().read = []() -> at::Tensor { vmoba::throw_runtime("the input is gone"); };
  CHECK_THROWS_AS(save_transformer(folder.path(), "{}", broken, 40'000), vmoba::Error);
  CHECK(contents(folder.path()) == before);
  save_transformer(folder.path(), "{}", tensors);
  CHECK(contents(folder.path()).size() == 3);  // config, weights, the neighbour
}

TEST_CASE("what is read is never written, under whatever name") {
  const TemporaryFolder folder;
  const std::string base = folder.path() + "/base", linked = folder.path() + "/linked.safetensors";
  save_transformer(base, load(fixture_path("wan_t2v"))->config_json(), tensors_to_write(fixture_weights()));
  const std::string weights = base + "/diffusion_pytorch_model.safetensors";
  fs::create_hard_link(weights, linked);
  fs::create_directory_symlink(base, folder.path() + "/alias");
  const auto before = contents(base);
  for (const std::string& out : {weights, base, base + "/../base", linked, folder.path() + "/alias"})
    CHECK(contains(refusal_of([&] { convert_weights(conversion(base, out, "original")); }),
                   "an output other than the input"));
  CHECK(contents(base) == before);
}

TEST_CASE("the checksum sees every byte and its place") {
  std::string bytes(100, 'x');
  const uint64_t whole = bytes_checksum(bytes.data(), bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = 'y';
    CHECK(bytes_checksum(bytes.data(), bytes.size()) != whole);
    bytes[i] = 'x';
  }
  std::swap_ranges(bytes.begin(), bytes.begin() + 8, bytes.begin() + 32);
  bytes[0] = 'a';
  const uint64_t first = bytes_checksum(bytes.data(), bytes.size());
  std::swap(bytes[0], bytes[8]);
  CHECK(bytes_checksum(bytes.data(), bytes.size()) != first);
  CHECK(bytes_checksum(bytes.data(), 99) != bytes_checksum(bytes.data(), 100));
}

TEST_CASE("round trips through every layout keep names, shapes and bytes") {
  const TemporaryFolder folder;
  const std::string a = folder.path() + "/original", b = folder.path() + "/c.safetensors", c = folder.path() + "/back";
  convert_weights(conversion(fixture_path("wan_t2v"), a, "original"));
  convert_weights(conversion(a, b, "comfyui"));
  convert_weights(conversion(b, c, "diffusers"));
  CHECK(SafetensorsFile(b).contains("model.diffusion_model.blocks.0.self_attn.q.weight"));
  CHECK(SafetensorsFile(a + "/diffusion_pytorch_model.safetensors").contains("head.modulation"));
  check_fixture_weights(*load(a));
  check_fixture_weights(*load(b));
  check_fixture_weights(*load(c));  // and its config.json agrees
  ConvertOptions half = conversion(c, folder.path() + "/half", "diffusers");
  half.dtype = "bf16";
  convert_weights(half);
  CHECK(parameter(*load(half.out), "proj_out.weight")
            .tensor.detach()
            .equal(parameter(*load(c), "proj_out.weight").tensor.detach().to(at::kBFloat16).to(at::kFloat)));
}

TEST_CASE("a LoRA is merged at its strength") {
  const TemporaryFolder folder;
  ConvertOptions options = conversion(fixture_path("wan_t2v"), folder.path() + "/merged", "diffusers");
  options.loras = {fixture_path("lora")};
  options.lora_strength = 0.5;
  convert_weights(options);
  const auto merged = load(options.out), plain = load(fixture_path("wan_t2v"));
  for (const Adapter& adapter : read_lora(fixture_path("lora"), wan_row(), at::kCPU)) {
    const std::string name = adapter.module + ".weight";
    const LowRank& x = adapter.low_rank;
    CHECK(x.scale == 5.0 / 3.0);
    const at::Tensor expected = parameter(*plain, name).tensor.detach().to(at::kDouble) +
                                at::matmul(x.b.to(at::kDouble), x.a.to(at::kDouble)) * (0.5 * x.scale);
    CHECK(relative_error(parameter(*merged, name).tensor.detach(), expected) < 1e-6);
  }
}

TEST_CASE("conversions that make no sense are refused") {
  const TemporaryFolder folder;
  const std::string base = fixture_path("wan_t2v"), out = folder.path() + "/x";
  const auto refused = [&](const ConvertOptions& options) { return refusal_of([&] { convert_weights(options); }); };
  CHECK(contains(refused(conversion(base, out, "kohya")), "LoRA files"));
  CHECK(contains(refused(conversion(base, out, "comfyui")), ".safetensors"));
  CHECK(contains(refused(conversion(base, base, "original")), "an output other than the input"));
  CHECK(contains(refused(conversion(fixture_path("lora"), out + ".safetensors", "original")), "--layout"));
  CHECK(contains(refused(conversion(folder.path() + "/none", out, "diffusers")), "found nothing"));
  ConvertOptions narrow = conversion(base, out, "diffusers");
  narrow.head_dim = 0;  // its config.json says 20
  CHECK_NOTHROW(convert_weights(narrow));
  narrow.in = base + "/diffusion_pytorch_model.safetensors";
  narrow.head_dim = 128;
  CHECK(contains(refused(narrow), "--head-dim"));
}

namespace {

// A model of Wan's shapes; "layers heads ffn" from the environment, so that larger ones can be measured by hand.
ModelConfig peak_config() {
  const char* sizes = std::getenv("VMOBA_PEAK_SIZES");
  ModelConfig config;
  config.layers = 3;
  if (sizes) std::sscanf(sizes, "%ld %ld %ld", &config.layers, &config.heads, &config.own<WanConfig>().ffn_dim);
  config.weights_dtype = "bf16";
  return config;
}

int64_t status_kib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key)) return std::atoll(line.c_str() + key.size());
  return -1;
}

}  // namespace

TEST_CASE("child of the next case: loads and prints peak memory", "[.peak]") {
  const char* file = std::getenv("VMOBA_PEAK_FILE");
  if (file == nullptr) return;  // an exclusion on the command line brings hidden cases in
  ModelConfig config = peak_config();
  config.weights = file;
  make_dit(wan_t2v_config(), full_attention(), 0, at::kCPU);  // what the library itself takes
  const int64_t before = status_kib("VmRSS:");
  std::ofstream("/proc/self/clear_refs") << 5;  // VmHWM begins anew
  const auto model = make_dit(config, full_attention(), 0, at::kCPU);
  std::cout << "peak " << (status_kib("VmHWM:") - before) * 1024 << "\n";
}

TEST_CASE("loading a file into its own type takes at most 1.1 times its size") {
  const TemporaryFolder folder;
  const char* given = std::getenv("VMOBA_PEAK_FOLDER");
  const std::string path = (given ? given : folder.path()) + std::string("/wan.safetensors");
  std::vector<TensorToWrite> tensors;
  for (const ParameterSpec& spec : wan_parameter_specs(peak_config()))
    tensors.push_back(
        {spec.name, at::kBFloat16, spec.shape, [spec] { return at::full(spec.shape, 0.5, at::kBFloat16); }});
  write_safetensors(path, tensors);
  const double file_bytes = double(fs::file_size(path));
  const auto child =
      vmoba::test::run_process({fs::read_symlink("/proc/self/exe").string(), "[.peak]"}, {"VMOBA_PEAK_FILE=" + path});
  fs::remove(path);
  INFO(child.output);
  const size_t at = child.output.find("peak ");
  REQUIRE(at != std::string::npos);
  const double peak = double(std::atoll(child.output.c_str() + at + 5));
  std::cout << fmt::format("loading {:.0f} MB of bf16: peak {:.0f} MB, {:.3f} of the file\n", file_bytes / 1e6,
                           peak / 1e6, peak / file_bytes);
  CHECK(peak < 1.1 * file_bytes);
  CHECK(peak > 0.95 * file_bytes);
}
