// GGUF files: values as the PyPI package `gguf` reads them, whole transformers whose blocks stay packed, and headers
// that claim what is not there.
#include "model/weights/gguf.h"

#include <ATen/ATen.h>

#include <fstream>

#include "core/file.h"
#include "model/common/host_inputs.h"
#include "model/common/packed.h"
#include "model/common/weight_ring.h"
#include "model/convert.h"
#include "model/packed_rows.h"
#include "model/wan_fixture.h"
#include "model/weights/pretrained.h"
#include "model/weights/weight_files.h"
#include "support/messages.h"
#include "support/process.h"
#include "support/same_tensors.h"

using namespace vmoba::model;
using vmoba::test::check_same;
using vmoba::test::contains;
using vmoba::test::random_rows;
using vmoba::test::refusal_of;

namespace {

constexpr Packing kPackings[] = {Packing::kQ8_0, Packing::kQ4_K, Packing::kQ5_K, Packing::kQ6_K};
constexpr uint32_t kTypes[] = {8, 12, 13, 14}, kF16 = 1, kF32 = 0;

std::string golden() {
  return fixture_path("packed.gguf");
}

// Writes headers as the format's description says.
class GgufText {
 public:
  template <typename Number>
  GgufText& number(Number value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  GgufText& text(const std::string& value) {
    number(uint64_t(value.size()));
    bytes += value;
    return *this;
  }
  std::string bytes = "GGUF";
};

struct Stored {
  std::string name;
  uint32_t type;
  std::vector<int64_t> shape;
  std::string bytes;
};

std::string file_of(const std::vector<Stored>& tensors) {
  GgufText header;
  std::vector<const Stored*> wide;
  for (const Stored& t : tensors)
    if (t.shape.size() > 4) wide.push_back(&t);
  header.number(uint32_t{3}).number(uint64_t(tensors.size())).number(uint64_t(1 + wide.size()));
  header.text("general.architecture").number(uint32_t{8}).text("wan");
  for (const Stored* t : wide) {
    header.text("comfy.gguf.orig_shape." + t->name).number(uint32_t{9}).number(uint32_t{5});
    header.number(uint64_t(t->shape.size()));
    for (const int64_t size : t->shape) header.number(int32_t(size));
  }
  std::string data;
  for (const Stored& t : tensors) {
    std::vector<int64_t> shape = t.shape;
    if (shape.size() > 4) shape = {shape[0], c10::multiply_integers(shape.begin() + 1, shape.end())};
    header.text(t.name).number(uint32_t(shape.size()));
    for (size_t i = shape.size(); i-- > 0;) header.number(int64_t(shape[i]));
    header.number(t.type).number(uint64_t(data.size()));
    data += t.bytes;
    data.resize((data.size() + 31) / 32 * 32);
  }
  header.bytes.resize((header.bytes.size() + 31) / 32 * 32);
  return header.bytes + data;
}

std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  return {static_cast<const char*>(whole.const_data_ptr()), size_t(whole.nbytes())};
}

ModelConfig wide_config() {
  ModelConfig config;
  config.layers = 4;
  config.heads = 2;
  config.head_dim = 128;
  config.own<WanConfig>().ffn_dim = 256;
  config.in_channels = config.out_channels = 4;
  config.text_dim = 12;
  config.own<WanConfig>().freq_dim = 16;
  return config;
}

// One transformer as a GGUF file of the original names, and as a safetensors file of its values.
struct Files {
  Files() {
    std::vector<Stored> packed;
    std::vector<NamedTensor> plain;
    const Layout& layout = layout_named(wan_row(), "original");
    uint64_t number = 0;
    const auto model = make_dit(wide_config(), full_attention(), 5, at::kCPU);
    for (const Parameter& p : model->parameters()) {
      const std::string name = layout.place_of(p.name).value().name;
      // Outside the blocks, where weights are kept in bf16, with values that bf16 has.
      at::Tensor values = p.tensor.detach().to(at::kBFloat16).to(at::kFloat);
      const bool matrix = p.shape().size() == 2 && p.name.ends_with(".weight"), outer = !p.name.starts_with("blocks.");
      if (matrix && p.shape()[1] % 256 == 0) {
        const size_t kind = outer ? 0 : number % 4;
        const at::Tensor rows = random_rows(kPackings[kind], p.shape(), number++, outer ? 1.0 / 1024 : 0);
        values = unpacked(rows, kPackings[kind], at::kFloat);
        packed.push_back({name, kTypes[kind], p.shape().vec(), bytes_of(rows)});
      } else if (p.shape().size() > 3) {
        values = values.to(at::kHalf).to(at::kFloat).to(at::kBFloat16).to(at::kFloat);
        packed.push_back({name, kF16, p.shape().vec(), bytes_of(values.to(at::kHalf))});
      } else {
        packed.push_back({name, kF32, p.shape().vec(), bytes_of(values)});
      }
      plain.push_back({p.name, values});
    }
    std::ofstream(gguf, std::ios::binary) << file_of(packed);
    write_safetensors(safetensors, plain);
  }
  vmoba::test::TemporaryFolder folder;
  std::string gguf = folder.path() + "/wan-Q4_K_M.gguf", safetensors = folder.path() + "/plain.safetensors";
};

const Files& files() {
  static const Files made;
  return made;
}

ModelConfig of_file(const std::string& path, const char* weights_dtype) {
  ModelConfig config = wide_config();
  config.weights = path;
  config.weights_dtype = weights_dtype;
  return config;
}

// Outputs and gradients of inputs and adapters of some maps.
std::map<std::string, at::Tensor> outcome(const ModelConfig& config, at::ScalarType dtype, bool offload = false) {
  WeightRing ring(std::make_shared<RingSlots>(at::kCPU));
  HostInputs inputs(at::kCPU);
  const auto model = make_dit(config, full_attention(), 0, at::kCPU, offload ? &ring : nullptr);
  std::vector<Adapter> adapters;
  for (const char* module : {"blocks.0.attn1.to_q", "blocks.2.ffn.net.0.proj"})
    adapters.push_back(
        {module, {at::linspace(-0.2, 0.3, 512).view({2, 256}), at::linspace(-0.1, 0.2, 512).view({256, 2}), 1}});
  model->attach(adapters);
  ForwardOptions options{dtype};
  options.recompute = every_block(config, {true});
  if (offload) options.host_inputs = &inputs;
  std::map<std::string, at::Tensor> out =
      run_wan(*model, SafetensorsFile(fixture_path("wan_t2v.safetensors")), options);
  for (const Parameter& p : model->trainable()) out["grad." + p.name] = p.tensor.grad();
  return out;
}

}  // namespace

TEST_CASE("every type has the values that the gguf package reads") {
  const SafetensorsFile expected(fixture_path("packed.safetensors"));
  const GgufFile file(golden());
  REQUIRE(file.tensors().size() == expected.tensors().size());
  for (const auto& [name, info] : file.tensors()) {
    INFO(name);
    const at::Tensor values = expected.tensor(name);
    CHECK(at::IntArrayRef(info.shape) == values.sizes());
    const at::Tensor stored = file.tensor(name);
    CHECK(at::equal(info.packing ? unpacked(stored, *info.packing, at::kFloat) : stored.to(at::kFloat), values));
  }
  CHECK(file.tensors().at("patch").shape.size() == 5);
  CHECK(contains(refusal_of([&] { file.tensor("Q4_k"); }), "Q4_K"));
  // Rows are unpacked apart.
  const at::Tensor rows = file.tensor("Q6_K");
  CHECK(at::equal(unpacked(rows.narrow(0, 2, 2), Packing::kQ6_K, at::kBFloat16),
                  expected.tensor("Q6_K").narrow(0, 2, 2).to(at::kBFloat16)));
}

TEST_CASE("a transformer whose blocks stay packed computes what its values do, in the host's memory too") {
  const ModelConfig packed = of_file(files().gguf, "packed"), plain = of_file(files().safetensors, "fp32");
  const auto expected = outcome(plain, at::kFloat);
  check_same(outcome(packed, at::kFloat), expected);
  check_same(outcome(packed, at::kFloat, /*offload=*/true), expected);
  check_same(outcome(of_file(files().gguf, "fp32"), at::kFloat), expected);
  check_same(outcome(of_file(files().gguf, "bf16"), at::kBFloat16),
             outcome(of_file(files().safetensors, "bf16"), at::kBFloat16));
  const auto model = make_dit(packed, full_attention(), 0, at::kCPU);
  const std::vector<Parameter> shapes = parameter_shapes(packed);
  int64_t packed_count = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const Parameter& p = model->parameters()[i];
    INFO(p.name);
    CHECK(shapes[i].tensor.sizes() == p.tensor.sizes());
    CHECK(shapes[i].tensor.scalar_type() == p.tensor.scalar_type());
    CHECK(shapes[i].shape() == p.shape());
    packed_count += p.packing.has_value();
    CHECK(p.packing.has_value() ==
          (p.name.starts_with("blocks.") && p.shape().size() == 2 && p.name.ends_with("weight")));
  }
  CHECK(packed_count == 4 * 10);
}

TEST_CASE("vmoba-convert writes the values of a GGUF file") {
  const vmoba::test::TemporaryFolder folder;
  ConvertOptions options;
  options.in = files().gguf;
  options.out = folder.path() + "/out.safetensors";
  options.layout = "diffusers";
  options.dtype = "fp32";
  options.head_dim = 128;
  convert_weights(options);
  const SafetensorsFile found(options.out), expected(files().safetensors);
  REQUIRE(found.tensors().size() == expected.tensors().size());
  for (const auto& [name, info] : expected.tensors()) {
    INFO(name);
    CHECK(at::equal(found.tensor(name), expected.tensor(name)));
  }
}

TEST_CASE("packed weights are those of a GGUF file") {
  CHECK(contains(refusal_of([] { make_dit(of_file(files().safetensors, "packed"), full_attention(), 0, at::kCPU); }),
                 "expected a GGUF file"));
  CHECK(contains(refusal_of([] { make_dit(of_file("", "packed"), full_attention(), 0, at::kCPU); }), "model.weights"));
}

TEST_CASE("headers that claim what is not there are refused") {
  const std::string whole = vmoba::read_file(golden(), 1 << 20, "a file");
  const GgufHeader header = parse_gguf_header(whole, int64_t(whole.size()), "x");
  // Cut anywhere within the header, and one byte short of the data.
  for (int64_t end = 0; end < header.data_begin - 32; ++end) {
    INFO(end);
    CHECK_FALSE(refusal_of([&] { parse_gguf_header(whole.substr(0, size_t(end)), end, "x"); }).empty());
  }
  CHECK(contains(refusal_of([&] { parse_gguf_header(whole, header.data_begin + 30000, "x"); }), "did not finish"));
  const auto refusal = [](const GgufText& text) {
    return refusal_of([&] { parse_gguf_header(text.bytes, int64_t(text.bytes.size()), "x"); });
  };
  const auto start = [](uint64_t tensors, uint64_t values) {
    return GgufText().number(uint32_t{3}).number(tensors).number(values);
  };
  CHECK(contains(refusal(GgufText().number(uint32_t{1})), "version 2 or 3"));
  CHECK(contains(refusal(start(uint64_t{1} << 60, 0)), "end of its header"));
  CHECK(contains(refusal(start(0, 1).number(uint64_t{1} << 62)), "at most"));
  CHECK(contains(refusal(start(0, 1).text("a").number(uint32_t{99})), "type of values"));
  CHECK(contains(refusal(start(0, 1).text("a").number(uint32_t{9}).number(uint32_t{4}).number(uint64_t{1} << 62)),
                 "values"));
  CHECK(contains(refusal(start(0, 1).text("general.alignment").number(uint32_t{4}).number(uint32_t{3})), "alignment"));
  const auto tensor = [&](std::vector<int64_t> sizes, uint32_t type, int64_t offset) {
    GgufText text = start(1, 0).text("t").number(uint32_t(sizes.size()));
    for (const int64_t size : sizes) text.number(size);
    return refusal(text.number(type).number(offset));
  };
  CHECK(contains(tensor({int64_t{1} << 40, int64_t{1} << 40}, 0, 0), "sizes of a tensor"));
  CHECK(contains(tensor({-1}, 0, 0), "sizes of a tensor"));
  CHECK(contains(tensor({int64_t{1} << 62}, 0, 0), "the place of"));
  CHECK(contains(tensor({4}, 2, 0), "Q8_0, Q4_K"));  // Q4_0
  CHECK(contains(tensor({100}, 12, 0), "multiple of 256"));
  CHECK(contains(tensor({256}, 12, 0), "to be a matrix"));
  CHECK(contains(tensor({4}, 0, 5), "multiple of 32"));
  CHECK(contains(tensor({4}, 0, -32), "the place of"));
  CHECK(contains(tensor({4}, 0, 0), "did not finish"));
}
