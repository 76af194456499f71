// Adapter files of many tools: what they add and how strongly. Expected values are computed here in fp64.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "model/adapter/lora.h"
#include "model/adapter/lora_file.h"
#include "model/adapter/peft_settings.h"
#include "model/convert.h"
#include "model/wan_fixture.h"
#include "support/messages.h"
#include "support/process.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;
using vmoba::test::TemporaryFolder;

const at::Tensor kA = at::linspace(-1, 1, 80).view({2, 40}), kB = at::linspace(1, -0.5, 80).view({40, 2});

std::vector<NamedTensor> pair(const std::string& module, const std::string& a = ".lora_A.weight",
                              const std::string& b = ".lora_B.weight") {
  return {{module + a, kA}, {module + b, kB}};
}

std::vector<NamedTensor> joined(std::vector<NamedTensor> tensors, const std::vector<NamedTensor>& more) {
  tensors.insert(tensors.end(), more.begin(), more.end());
  return tensors;
}

// A file of these tensors, read.
struct Written {
  explicit Written(const std::vector<NamedTensor>& tensors, const std::string& metadata = "",
                   const std::string& name = "x.safetensors")
      : path(folder.path() + "/" + name) {
    write_safetensors(path, tensors,
                      metadata.empty() ? std::map<std::string, std::string>{}
                                       : std::map<std::string, std::string>{{"lora_adapter_metadata", metadata}});
  }
  std::vector<Adapter> adapters() const { return read_lora(path, wan_row(), at::kCPU); }
  std::string refusal() const {
    return refusal_of([&] { read_changes(path, wan_row(), at::kCPU); });
  }
  double scale() const {
    const auto read = adapters();
    REQUIRE(read.size() == 1);
    return read[0].low_rank.scale;
  }
  TemporaryFolder folder;
  std::string path;
};

double stated_scale(const std::string& settings, const std::string& module = "blocks.0.attn1.to_q", int64_t rank = 2) {
  return PeftSettings(nlohmann::ordered_json::parse(settings), "the test").scale(module, rank);
}

const at::Tensor base_weight(const std::string& name) {
  static const SafetensorsFile file(fixture_path("wan_t2v/diffusion_pytorch_model.safetensors"));
  return file.tensor(name).to(at::kDouble);
}

// The tensor of wan_t2v with the file merged into it, on the way of vmoba-convert and on that of vmoba-sample.
at::Tensor merged(const Written& lora, const std::string& name, double strength = 1) {
  const TemporaryFolder folder;
  ConvertOptions options;
  options.in = fixture_path("wan_t2v");
  options.out = folder.path() + "/merged.safetensors";
  options.layout = "diffusers";
  options.loras = {lora.path};
  options.lora_strength = strength;
  convert_weights(options);
  const at::Tensor converted = SafetensorsFile(options.out).tensor(name).clone();

  const auto model = make_dit(wan_t2v_config(), full_attention(), 0, at::kCPU);
  const auto adapters =
      merged_adapters({{read_changes(lora.path, wan_row(), at::kCPU), strength, lora.path}}, model->parameters());
  for (const Parameter& parameter : model->parameters()) {
    if (parameter.name != name) continue;
    at::Tensor sampled = parameter.tensor.detach().clone();
    for (const Adapter& adapter : adapters)
      if (adapter.module + ".weight" == name)
        sampled += at::matmul(adapter.low_rank.b, adapter.low_rank.a) * adapter.low_rank.scale;
    CHECK(relative_error(sampled, converted) < 1e-6);
  }
  return converted;
}

const std::string kModule = "diffusion_model.blocks.0.self_attn.q", kWeight = "blocks.0.attn1.to_q.weight";

}  // namespace

TEST_CASE("names of many tools are one module") {
  const std::pair<std::string, std::string> names[] = {
      {"diffusion_model.blocks.3.self_attn.q", "blocks.3.attn1.to_q"},
      {"model.diffusion_model.blocks.3.ffn.0", "blocks.3.ffn.net.0.proj"},
      {"pipe.dit.blocks.3.self_attn.q", "blocks.3.attn1.to_q"},
      {"base_model.model.diffusion_model.blocks.3.self_attn.q", "blocks.3.attn1.to_q"},
      {"transformer.blocks.3.attn2.to_out.0", "blocks.3.attn2.to_out.0"},
      {"blocks.13.cross_attn.k_img", "blocks.13.attn2.add_k_proj"},
      {"lora_unet_blocks_3_ffn_2", "blocks.3.ffn.net.2"},
      {"lora_unet__blocks_3_ffn_2", "blocks.3.ffn.net.2"},
      {"lora_transformer_blocks_3_attn1_to_out_0", "blocks.3.attn1.to_out.0"},
      {"lycoris_blocks_3_self_attn_v", "blocks.3.attn1.to_v"},
      {"diffusion_model.head.head", "proj_out"},
      {"lora_unet_time_projection_1", "condition_embedder.time_proj"},
  };
  const std::pair<std::string, std::string> endings[] = {{".lora_A.weight", ".lora_B.weight"},
                                                         {".lora_A.default.weight", ".lora_B.default.weight"},
                                                         {".lora_down.weight", ".lora_up.weight"},
                                                         {".lora.down.weight", ".lora.up.weight"},
                                                         {".lora_A", ".lora_B"}};
  for (const auto& [written, module] : names) {
    for (const auto& [a, b] : endings) {
      INFO(written << a);
      const auto adapters = Written(pair(written, a, b)).adapters();
      REQUIRE(adapters.size() == 1);
      CHECK(adapters[0].module == module);
      CHECK(adapters[0].low_rank.a.equal(kA));
      CHECK(adapters[0].low_rank.b.equal(kB));
      CHECK(adapters[0].low_rank.scale == 1);
    }
  }
}

TEST_CASE("alpha of any type is a number; without one the scale is 1") {
  for (const at::ScalarType dtype :
       {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble, at::kLong, at::kInt, at::kShort})
    CHECK(Written(joined(pair(kModule), {{kModule + ".alpha", at::full({}, 8).to(dtype)}})).scale() == 4);
  CHECK(Written(joined(pair(kModule), {{kModule + ".alpha", at::full({1}, 0.5)}})).scale() == 0.25);
  CHECK(contains(Written(joined(pair(kModule), {{kModule + ".alpha", at::ones({2})}})).refusal(), "one number"));
  CHECK(contains(Written(joined(pair(kModule), {{kModule + ".alpha", at::full({}, NAN)}})).refusal(), "finite"));
}

TEST_CASE("diffusers' metadata with and without the pipeline's prefix") {
  const std::string q = "blocks.0.attn1.to_q";
  CHECK(Written(pair(q), R"({"r": 2, "lora_alpha": 8})").scale() == 4);
  CHECK(Written(pair("transformer." + q), R"({"transformer.r": 2, "transformer.lora_alpha": 6})").scale() == 3);
  CHECK(Written(pair(q), R"({"r": 2, "lora_alpha": 2, "alpha_pattern": {"^blocks.0.attn1.to_q": 5}})").scale() == 2.5);
  CHECK(contains(Written(pair(q), "{").refusal(), "expected JSON in"));
  CHECK(contains(Written(pair(q), R"({"text_encoder.r": 2})").refusal(), "found none"));
  CHECK(contains(Written(pair(q), R"({"r": 4, "lora_alpha": 8})").refusal(), "expected rank 4"));
  CHECK(contains(Written(pair(q), R"({"r": 2, "lora_alpha": "8"})").refusal(), "lora_alpha"));
  CHECK(contains(Written(pair(q), R"({"r": 2, "lora_alpha": 8, "use_dora": true})").refusal(), "use_dora"));
}

TEST_CASE("patterns match as Python's re does in peft") {
  const auto alpha = [](const std::string& pattern, const std::string& module) {
    const nlohmann::ordered_json settings = {{"r", 2}, {"lora_alpha", 2}, {"alpha_pattern", {{pattern, 20}}}};
    return stated_scale(settings.dump(), module) == 10;
  };
  const std::string q = "blocks.10.attn1.to_q";
  for (const char* pattern : {"to_q", "attn1.to_q", "^blocks.10.attn1.to_q", "blocks\\.\\d+\\.attn1\\.to_q", "attn1.*",
                              "to_(q|k)", "to_q|to_k", "to_[qk]", "blocks\\.(1|10)\\..*", "a{1,2}ttn1.to_q|.*to_q"})
    CHECK(alpha(pattern, q));
  for (const char* pattern :
       {"to", "o_q", "ttn1.to_q", "attn1", "^attn1.to_q", "to_k", "blocks.1.attn1.to_q", "10", ""})
    CHECK_FALSE(alpha(pattern, q));
  // The first pattern of the file counts.
  CHECK(stated_scale(R"({"r": 2, "lora_alpha": 2, "alpha_pattern": {"zz": 4, "to_q": 6, "attn1.to_q": 8}})") == 3);
  CHECK(stated_scale(R"({"r": 8, "lora_alpha": 8, "rank_pattern": {"to_q": 2}})") == 4);
  CHECK(stated_scale(R"({"r": 4, "lora_alpha": 8, "use_rslora": true})", "x", 4) == 4);
  CHECK(stated_scale(R"({"r": 2})") == 4);  // peft's own default
  // What means another thing in C++, or nothing, is no match and no miss.
  for (const char* pattern :
       {"(?i)to_q", "(?P<n>to_q)", "\\Ato_q", "to_q\\Z", "(?<!x)to_q", "t*+o_q", "[[:alpha:]]+", "(", "a{,2}"})
    CHECK_FALSE(refusal_of([&] { alpha(pattern, q); }).empty());
  // Time does not grow with the pattern's choices.
  CHECK_FALSE(alpha("(a*)*(b*)*(a|a)*(_|_)*z", std::string(40, 'a') + std::string(40, '_')));
}

TEST_CASE("settings that change what the matrices mean are refused by name") {
  const auto refused = [](const std::string& field) {
    return refusal_of([&] { stated_scale(R"({"r": 2, "lora_alpha": 2, )" + field + "}"); });
  };
  CHECK(contains(refused(R"("peft_type": "LOKR")"), "LOKR"));
  CHECK(contains(refused(R"("init_lora_weights": "pissa_niter_4")"), "pissa_niter_4"));
  CHECK(contains(refused(R"("init_lora_weights": "olora")"), "olora"));
  CHECK(contains(refused(R"("layer_replication": [[0, 2]])"), "layer_replication"));
  CHECK(contains(refused(R"("use_qalora": true)"), "use_qalora"));
  CHECK(contains(refused(R"("some_later_way": true)"), "some_later_way"));
  CHECK(contains(refused(R"("alpha_pattern": {"to_q": "4"})"), "alpha_pattern"));
  CHECK(contains(refused(R"("alpha_pattern": ["to_q"])"), "alpha_pattern"));
  CHECK(refused(R"("init_lora_weights": "gaussian", "some_later_size": 16, "qalora_group_size": 16)").empty());
}

TEST_CASE("adapter_config.json speaks for the file that peft writes with it, no other") {
  const std::string config = R"({"peft_type": "LORA", "r": 2, "lora_alpha": 16})";
  const auto beside = [&](const Written& lora) {
    std::ofstream(lora.folder.path() + "/adapter_config.json") << config;
  };
  const Written comfyui(pair(kModule)),
      peft(pair("base_model.model.blocks.0.attn1.to_q"), "", "adapter_model.safetensors");
  const Written renamed(pair("base_model.model.blocks.0.attn1.to_q"));
  const Written of_diffusion_pipe(pair(kModule), "", "adapter_model.safetensors");
  CHECK(renamed.scale() == 1);  // and a warning
  for (const Written* lora : {&comfyui, &peft, &renamed, &of_diffusion_pipe}) beside(*lora);
  CHECK(comfyui.scale() == 1);
  CHECK(peft.scale() == 8);
  CHECK(of_diffusion_pipe.scale() == 8);
  CHECK(contains(renamed.refusal(), "adapter_model.safetensors"));
}

TEST_CASE("one file of two transformers is read by number") {
  const at::Tensor other = kB * 2;
  const Written both(
      joined(pair("transformer.blocks.0.attn1.to_q"), {{"transformer_2.blocks.0.attn1.to_q.lora_A.weight", kA},
                                                       {"transformer_2.blocks.0.attn1.to_q.lora_B.weight", other}}),
      R"({"transformer.r": 2, "transformer.lora_alpha": 2, "transformer_2.r": 2,
                         "transformer_2.lora_alpha": 6})");
  CHECK(contains(both.refusal(), "2:FILE"));
  CHECK(named_transformers(both.path, wan_row()) == std::set<size_t>{0, 1});
  const auto first = read_lora({both.path, 0}, wan_row(), at::kCPU),
             second = read_lora({both.path, 1}, wan_row(), at::kCPU);
  CHECK(first.at(0).low_rank.b.equal(kB));
  CHECK(first.at(0).low_rank.scale == 1);
  CHECK(second.at(0).low_rank.b.equal(other));
  CHECK(second.at(0).low_rank.scale == 3);
  // Each part becomes a file of its own.
  ConvertOptions options;
  options.in = "2:" + both.path;
  options.out = both.folder.path() + "/low.safetensors";
  options.layout = "kohya";
  convert_weights(options);
  CHECK(read_lora(options.out, wan_row(), at::kCPU).at(0).low_rank.scale == 3);
  options.in = both.path;
  CHECK(contains(refusal_of([&] { convert_weights(options); }), "2:FILE"));
  const Written low(pair("pipe.dit2.blocks.0.self_attn.q"));
  CHECK_FALSE(low.refusal().empty());
  CHECK(read_lora({low.path, 1}, wan_row(), at::kCPU).size() == 1);
  CHECK_FALSE(refusal_of([&] { read_lora({low.path, 0}, wan_row(), at::kCPU); }).empty());
  CHECK(read_lora({Written(pair(kModule)).path, 1}, wan_row(), at::kCPU).size() == 1);  // serves either
  CHECK(lora_source("2:a/b").path == "a/b");
  CHECK(lora_source("2:a/b").expert == 1);
  CHECK(lora_source("a:b").path == "a:b");
  CHECK_FALSE(refusal_of([] { lora_source("0:a"); }).empty());
}

TEST_CASE("differences of weights, biases and norms are added at the strength") {
  const at::Tensor of_weight = at::linspace(-1, 1, 1600).view({40, 40}), of_bias = at::linspace(0, 1, 40);
  const at::Tensor of_table = at::linspace(0, 1, 240).view({1, 6, 40});
  const Written lora(joined(pair(kModule), {{kModule + ".diff_b", of_bias},
                                            {"diffusion_model.blocks.0.self_attn.norm_q.diff", of_bias},
                                            {"diffusion_model.blocks.1.cross_attn.v.diff", of_weight},
                                            {"diffusion_model.blocks.1.modulation.diff", of_table}}));
  const auto added = [&](const std::string& name, const at::Tensor& difference) {
    CHECK(relative_error(merged(lora, name, 0.5), base_weight(name) + difference.to(at::kDouble) * 0.5) < 1e-6);
  };
  added(kWeight, at::matmul(kB, kA));
  added("blocks.0.attn1.to_q.bias", of_bias);
  added("blocks.0.attn1.norm_q.weight", of_bias);
  added("blocks.1.attn2.to_v.weight", of_weight);
  added("blocks.1.scale_shift_table", of_table);
  CHECK(contains(refusal_of([&] { lora.adapters(); }), "merge the file"));
  const Written small({{kModule + ".diff_b", at::zeros({39})}});
  CHECK(contains(refusal_of([&] { merged(small, kWeight); }), "another model"));
}

TEST_CASE("DoRA gives rows, or columns, their lengths") {
  const at::Tensor moved = base_weight(kWeight) + at::matmul(kB.to(at::kDouble), kA.to(at::kDouble)) * 1.5;
  const at::Tensor lengths = at::linspace(0.5, 2, 40);
  const at::Tensor rows = moved / moved.norm(2, 1, true) * lengths.to(at::kDouble).view({40, 1});
  const at::Tensor columns = moved / moved.norm(2, 0, true) * lengths.to(at::kDouble).view({1, 40});
  const NamedTensor alpha = {kModule + ".alpha", at::full({}, 3)};
  const std::pair<NamedTensor, at::Tensor> cases[] = {
      {{kModule + ".dora_scale", lengths.view({40, 1})}, rows},
      {{kModule + ".lora_magnitude_vector", lengths}, rows},
      {{kModule + ".lora_magnitude_vector.default.weight", lengths}, rows},
      {{kModule + ".dora_scale", lengths.view({1, 40})}, columns},
  };
  for (const auto& [magnitude, expected] : cases) {
    INFO(magnitude.name);
    const Written lora(joined(pair(kModule), {alpha, magnitude}));
    CHECK(relative_error(merged(lora, kWeight), expected) < 1e-6);
    const at::Tensor half = base_weight(kWeight) + (expected - base_weight(kWeight)) * 0.5;
    CHECK(relative_error(merged(lora, kWeight, 0.5), half) < 1e-6);
  }
}

TEST_CASE("a bias of B is scaled like B") {
  const Written lora(joined(
      pair(kModule), {{kModule + ".lora_B.bias", at::linspace(0, 1, 40)}, {kModule + ".alpha", at::full({}, 3)}}));
  const std::string bias = "blocks.0.attn1.to_q.bias";
  CHECK(relative_error(merged(lora, bias), base_weight(bias) + at::linspace(0, 1, 40).to(at::kDouble) * 1.5) < 1e-6);
}

TEST_CASE("a LoRA of the patch convolution is a LoRA of its matrix") {
  const std::string name = "patch_embedding.weight";
  const at::Tensor weight = base_weight(name), a = at::linspace(-1, 1, 2 * weight[0].numel());
  const std::string module = "diffusion_model.patch_embedding";
  std::vector<int64_t> shape = weight.sizes().vec();
  shape[0] = 2;
  const Written lora(
      {{module + ".lora_down.weight", a.view(shape)}, {module + ".lora_up.weight", kB.view({40, 2, 1, 1, 1})}});
  const at::Tensor expected = weight + at::matmul(kB, a.view({2, -1})).view(weight.sizes()).to(at::kDouble);
  CHECK(relative_error(merged(lora, name), expected) < 1e-6);
}

TEST_CASE("weights kept in bf16 and fp8 are changed and rounded as they are kept") {
  const Written lora({{"diffusion_model.blocks.1.cross_attn.v.diff", at::ones({40, 40})}});
  for (const auto& [dtype, limit] : std::map<std::string, double>{{"bf16", 0.01}, {"fp8", 0.07}}) {
    INFO(dtype);
    ModelConfig config = wan_t2v_config();
    config.weights_dtype = dtype;
    const auto model = make_dit(config, full_attention(), 0, at::kCPU);
    merged_adapters({{read_changes(lora.path, wan_row(), at::kCPU), 2, lora.path}}, model->parameters());
    for (const Parameter& p : model->parameters()) {
      if (p.name != "blocks.1.attn2.to_v.weight") continue;
      const at::Tensor found =
          p.scale.defined() ? scaled_weight(p.tensor, p.scale, at::kFloat) : p.tensor.to(at::kFloat);
      CHECK(relative_error(found, base_weight(p.name) + 2) < limit);
    }
  }
}

TEST_CASE("adapters of other kinds are refused by their names") {
  const std::pair<std::string, std::string> kinds[] = {{".lokr_w1", "LoKr"},
                                                       {".hada_w1_a", "LoHa"},
                                                       {".lora_mid.weight", "LoCon"},
                                                       {".oft_blocks", "OFT"},
                                                       {".set_weight", "set_weight"}};
  for (const auto& [ending, kind] : kinds) {
    const Written lora(joined(pair(kModule), {{kModule + ending, kA}}));
    CHECK(contains(lora.refusal(), kind));
    CHECK(is_lora(lora.path));
  }
  CHECK(contains(Written(joined(pair(kModule), {{kModule + ".lora_A.bias", kA}})).refusal(), "lora_A.bias"));
  CHECK(contains(Written(joined(pair(kModule), {{"text_encoder.q.lora_A.weight", kA}})).refusal(), "text_encoder"));
}
