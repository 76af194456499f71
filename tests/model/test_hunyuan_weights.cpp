// Layouts and LoRA files of HunyuanVideo, whose stored tensors hold several parameters or rows in another order.
#include <ATen/ATen.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "model/adapter/convert_lora.h"
#include "model/adapter/fused_maps.h"
#include "model/adapter/lora.h"
#include "model/adapter/lora_file.h"
#include "model/convert.h"
#include "model/hunyuan/hunyuan_parameters.h"
#include "model/hunyuan_fixture.h"
#include "model/weights/save.h"
#include "model/weights/weight_files.h"
#include "support/messages.h"
#include "support/process.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;
using vmoba::test::TemporaryFolder;

const Architecture& row(const std::string& name) {
  return architectures().find(name);
}

ModelConfig published(const std::string& name) {
  ModelConfig config;
  config.architecture = name;
  const bool first = name == kHunyuan;
  config.layers = first ? 20 : 54;
  config.heads = first ? 24 : 16;
  config.in_channels = first ? 16 : 65;
  config.out_channels = first ? 16 : 32;
  config.text_dim = first ? 4096 : 3584;
  config.image_dim = first ? 0 : 1152;
  if (!first) config.patch_size = {1, 1, 1};
  return config;
}

std::vector<NamedTensor> tensors_of(const std::string& path) {
  const SafetensorsFile file(path);
  std::vector<NamedTensor> out;
  for (const auto& [name, info] : file.tensors()) out.push_back({name, file.tensor(name).clone()});
  return out;
}

void check_same_file(const std::string& found, const std::string& expected, const std::string& prefix) {
  const SafetensorsFile one(found), other(expected);
  CHECK(one.tensors().size() == other.tensors().size());
  for (const auto& [name, info] : other.tensors()) {
    INFO(found << " " << name);
    REQUIRE(one.contains(prefix + name));
    CHECK(one.tensor(prefix + name).equal(other.tensor(name)));
  }
}

std::unique_ptr<Dit> load(const std::string& fixture, const std::string& path,
                          const std::string& weights_dtype = "fp32") {
  ModelConfig config = hunyuan_config(fixture);
  config.weights = path;
  config.weights_dtype = weights_dtype;
  return make_dit(config, full_attention(), 0, at::kCPU);
}

void check_weights_of(const std::string& fixture, const Dit& model) {
  const SafetensorsFile file(fixture_path(fixture + "/diffusion_pytorch_model.safetensors"));
  REQUIRE(model.parameters().size() == file.tensors().size());
  for (const Parameter& p : model.parameters()) {
    INFO(p.name);
    CHECK(p.tensor.detach().equal(file.tensor(p.name)));
  }
}

ConvertOptions conversion(const std::string& in, const std::string& out, const std::string& layout) {
  ConvertOptions options;
  options.in = in;
  options.out = out;
  options.layout = layout;
  return options;
}

const Parameter& parameter(const Dit& model, const std::string& name) {
  for (const Parameter& p : model.parameters())
    if (p.name == name) return p;
  throw std::runtime_error("no parameter " + name);
}

const char* const kFixtures[] = {"hunyuan_t2v", "hunyuan_15_t2v", "hunyuan_15_meanflow"};

}  // namespace

TEST_CASE("rows of a parameter in a stored tensor, and back") {
  const auto runs = [](Rows rows, size_t part, size_t parts, int64_t count, int64_t columns) {
    return row_runs({"", rows, part, parts}, count, columns);
  };
  using Runs = std::vector<RowRun>;
  CHECK((runs(Rows::kAll, 0, 1, 5, 0) == Runs{{0, 5}}));
  CHECK((runs(Rows::kSquarePart, 0, 4, 21, 4) == Runs{{0, 4}}));
  CHECK((runs(Rows::kSquarePart, 2, 4, 21, 4) == Runs{{8, 4}}));
  CHECK((runs(Rows::kSquarePart, 3, 4, 21, 4) == Runs{{12, 9}}));
  CHECK(runs(Rows::kSquarePart, 3, 4, 12, 4).empty());  // nothing left for the last
  CHECK(runs(Rows::kSquarePart, 0, 3, 12, 0).empty());
  CHECK((runs(Rows::kEqualPart, 2, 3, 12, 0) == Runs{{8, 4}}));
  CHECK(runs(Rows::kEqualPart, 0, 3, 13, 0).empty());
  CHECK((runs(Rows::kSwappedHalves, 0, 1, 6, 0) == Runs{{3, 3}, {0, 3}}));
  CHECK(runs(Rows::kSwappedHalves, 0, 1, 5, 0).empty());
  const at::Tensor rows = at::arange(6);
  CHECK(take_rows(rows, {{3, 3}, {0, 3}}).equal(at::tensor({3, 4, 5, 0, 1, 2}, at::kLong)));
  CHECK(joined_rows({take_rows(rows, {{3, 3}, {0, 3}})}, Rows::kSwappedHalves).equal(rows));
  CHECK(joined_rows({rows.narrow(0, 0, 4), rows.narrow(0, 4, 2)}, Rows::kSquarePart).equal(rows));
}

TEST_CASE("published names and shapes of HunyuanVideo in the original layout and ComfyUI's") {
  const auto all = nlohmann::json::parse(vmoba::read_file(fixture_path("hunyuan_shapes.json"), 1 << 20, "shapes"));
  for (const char* name : {kHunyuan, kHunyuan15}) {
    for (const char* title : {"original", "comfyui"}) {
      const auto& expected = all[name]["layouts"][title];
      const Layout& layout = layout_named(row(name), title);
      std::map<std::string, std::vector<int64_t>> stored;
      for (const ParameterSpec& spec : hunyuan_parameter_specs(published(name))) {
        INFO(title << " " << spec.name);
        const auto place = layout.names.place_of(spec.name);
        REQUIRE(place.has_value());
        const std::vector<std::string> back = layout.names.to_diffusers(place->name);
        REQUIRE(back.size() == place->parts);
        CHECK(back[place->part] == spec.name);
        const auto [found, fresh] = stored.emplace(place->name, spec.shape);
        if (!fresh) found->second[0] += spec.shape[0];
      }
      CHECK(stored.size() == expected["tensors"].get<size_t>());
      for (const auto& [stored_name, shape] : expected["shapes"].items()) {
        INFO(title << " " << stored_name);
        REQUIRE(stored.contains(stored_name));
        CHECK(stored[stored_name] == shape.get<std::vector<int64_t>>());
      }
    }
  }
  CHECK(all[kHunyuan]["layouts"]["original"]["tensors"] == 856);
  CHECK(all[kHunyuan15]["layouts"]["original"]["tensors"] == 1793);
  CHECK(all[kHunyuan15]["layouts"]["comfyui"]["tensors"] == 1361);
}

TEST_CASE("HunyuanVideo loads from every layout and prefix, and states its sizes there") {
  const TemporaryFolder folder;
  for (const std::string fixture : kFixtures) {
    for (const std::string layout : {"original", "comfyui"}) {
      const std::string stored = fixture_path(fixture + "_" + layout + ".safetensors");
      for (const std::string prefix : {"", "model.model.", "model.diffusion_model.", "diffusion_model."}) {
        std::vector<NamedTensor> tensors = tensors_of(stored);
        for (NamedTensor& named : tensors) named.name = prefix + named.name;
        const std::string path = folder.path() + "/x.safetensors";
        write_safetensors(path, tensors);
        INFO(fixture << " " << layout << " '" << prefix << "'");
        const ModelConfig expected = hunyuan_config(fixture);
        CHECK(recognised_architecture(stored_names(path)) == expected.architecture);
        check_weights_of(fixture, *load(fixture, path));
        ModelConfig found;
        found.architecture = expected.architecture;
        take_stated_sizes(found, path, {});
        CHECK(found.layers == expected.layers);
        CHECK(found.heads == 2);
        CHECK(found.head_dim == 8);
        CHECK(hunyuan_of(found).single_layers == hunyuan_of(expected).single_layers);
        CHECK(hunyuan_of(found).ffn_dim == 64);
        CHECK(hunyuan_of(found).refiner_layers == 2);
        CHECK(hunyuan_of(found).guidance_embed == hunyuan_of(expected).guidance_embed);
      }
    }
  }
}

TEST_CASE("HunyuanVideo goes through every layout and keeps its bytes") {
  for (const std::string fixture : kFixtures) {
    const TemporaryFolder folder;
    const std::string a = folder.path() + "/original", b = folder.path() + "/comfyui.safetensors",
                      c = folder.path() + "/back";
    convert_weights(conversion(fixture_path(fixture), a, "original"));
    convert_weights(conversion(a, b, "comfyui"));
    convert_weights(conversion(b, c, "diffusers"));
    const std::string weights = "/diffusion_pytorch_model.safetensors";
    check_same_file(a + weights, fixture_path(fixture + "_original.safetensors"), "");
    check_same_file(b, fixture_path(fixture + "_comfyui.safetensors"),
                    fixture == "hunyuan_t2v" ? "model.diffusion_model." : "");
    check_same_file(c + weights, fixture_path(fixture) + weights, "");
    CHECK(nlohmann::json::parse(vmoba::test::read_text(a + "/config.json"))["heads_num"] == 2);
    // What is written says of itself what diffusers' own config.json does.
    const auto found = nlohmann::json::parse(vmoba::test::read_text(fixture_path(fixture) + "/config.json"));
    auto expected = nlohmann::json::parse(load(fixture, fixture_path(fixture))->config_json());
    for (const auto& [key, value] : found.items()) {
      INFO(key);
      if (key == "target_size") continue;
      REQUIRE(expected.contains(key));
      if (key != "task_type" && !key.starts_with('_')) CHECK(expected[key] == value);
    }
  }
}

TEST_CASE("scaled fp8 of fused maps: the scale is cut with the rows") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors", module = "single_blocks.1.linear1";
  const at::Tensor values = at::linspace(-3, 3, 112 * 16).view({112, 16}).to(at::kFloat8_e4m3fn);
  for (const at::Tensor& scale :
       {at::full({}, 0.25), at::linspace(0.5, 2, 112), at::linspace(0.5, 2, 112).view({-1, 1}),
        at::linspace(0.5, 2, 224).view({112, 2, 1})}) {
    std::vector<NamedTensor> tensors = tensors_of(fixture_path("hunyuan_t2v_original.safetensors"));
    for (NamedTensor& named : tensors)
      if (named.name == module + ".weight") named.tensor = values;
    tensors.push_back({module + ".scale_weight", scale});
    write_safetensors(path, tensors);
    const at::Tensor expected = scaled_weight(values, scale, at::kFloat);
    const auto model = load("hunyuan_t2v", path), kept = load("hunyuan_t2v", path, "fp8");
    int64_t first = 0;
    for (const char* part : {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"}) {
      INFO(part << " " << scale.sizes());
      const std::string name = fmt::format("single_transformer_blocks.1.{}.weight", part);
      const at::Tensor found = parameter(*model, name).tensor.detach();
      CHECK(found.equal(expected.narrow(0, first, found.size(0))));
      const Parameter& stored = parameter(*kept, name);
      CHECK(stored.tensor.scalar_type() == at::kFloat8_e4m3fn);
      CHECK(scaled_weight(stored.tensor, stored.scale, at::kFloat).equal(found));
      first += found.size(0);
    }
    CHECK(first == 112);
  }
}

TEST_CASE("a fused tensor of another size is refused by its name") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  std::vector<NamedTensor> tensors = tensors_of(fixture_path("hunyuan_t2v_original.safetensors"));
  for (NamedTensor& named : tensors)
    if (named.name == "double_blocks.1.img_attn_qkv.weight") named.tensor = at::zeros({32, 16});
  write_safetensors(path, tensors);
  CHECK(contains(refusal_of([&] { load("hunyuan_t2v", path); }), "double_blocks.1.img_attn_qkv.weight"));
}

TEST_CASE("weights of HunyuanVideo 1.5's super-resolution are refused") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  std::vector<NamedTensor> tensors = tensors_of(fixture_path("hunyuan_15_meanflow_original.safetensors"));
  for (NamedTensor& named : tensors)
    if (named.name == "img_in.proj.weight") named.tensor = at::zeros({16, 14, 1, 1, 1});
  write_safetensors(path, tensors);
  ModelConfig config;
  config.architecture = kHunyuan15;
  CHECK(contains(refusal_of([&] { take_stated_sizes(config, path, {}); }), "super-resolution"));
}

namespace {

std::vector<std::string> all_targets(const std::string& fixture) {
  std::vector<std::string> out = architecture_of(hunyuan_config(fixture)).lora.default_targets;
  out.insert(out.end(), {"norm1.linear", "norm_out.linear", "proj_out", "context_embedder.proj_in"});
  return out;
}

std::vector<Adapter> random_adapters(const std::string& fixture, std::vector<std::string> targets) {
  at::manual_seed(7);
  LoraConfig config;
  config.rank = 2;
  config.alpha = 3;
  config.targets = std::move(targets);
  const ModelConfig model = hunyuan_config(fixture);
  auto adapters = make_adapters(config, architecture_of(model),
                                make_dit(model, full_attention(), 0, at::kCPU)->parameters(), 3, at::kCPU);
  for (Adapter& adapter : adapters) adapter.low_rank.b = at::randn(adapter.low_rank.b.sizes());
  return adapters;
}

std::map<std::string, at::Tensor> products(const std::vector<Adapter>& adapters) {
  std::map<std::string, at::Tensor> out;
  for (const Adapter& adapter : adapters) {
    const LowRank& x = adapter.low_rank;
    out[adapter.module] = at::matmul(x.b.detach().to(at::kDouble), x.a.detach().to(at::kDouble)) * x.scale;
  }
  return out;
}

// Modules without an adapter may come back with a product of zero.
void check_same_products(const std::vector<Adapter>& found, const std::vector<Adapter>& expected) {
  const auto one = products(found), other = products(expected);
  for (const auto& [module, product] : other) {
    INFO(module);
    REQUIRE(one.contains(module));
    CHECK(relative_error(one.at(module), product) < 2e-7);
  }
  for (const auto& [module, product] : one) {
    INFO(module);
    if (!other.contains(module)) CHECK(product.eq(0).all().item<bool>());
  }
}

}  // namespace

TEST_CASE("a LoRA of HunyuanVideo is the same in every format") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/lora.safetensors";
  for (const std::string fixture : kFixtures) {
    const ModelConfig config = hunyuan_config(fixture);
    const Architecture& architecture = architecture_of(config);
    const std::vector<Adapter> adapters = random_adapters(fixture, all_targets(fixture));
    CHECK(adapters.size() == (fixture == "hunyuan_t2v" ? 2 * 12 + 3 * 5 + 2 + 3 + 2 : 3 * 12 + 3 + 3 + 2));
    for (const char* format : {"diffusers", "comfyui", "kohya"}) {
      INFO(fixture << " " << format);
      write_lora(path, adapters, architecture, lora_format(format), at::kFloat);
      check_same_products(read_lora({path}, architecture, at::kCPU), adapters);
      CHECK(&architecture_of_lora(path, config.architecture) == &architecture);
    }
  }
  write_lora(path, random_adapters("hunyuan_t2v", all_targets("hunyuan_t2v")), row(kHunyuan), LoraFormat::kComfyUi,
             at::kFloat);
  const SafetensorsFile file(path);
  for (const char* name : {"diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight",
                           "diffusion_model.double_blocks.1.txt_attn_qkv.lora_B.weight",
                           "diffusion_model.single_blocks.2.linear1.lora_A.weight",
                           "diffusion_model.double_blocks.0.img_mlp.fc1.lora_A.weight"})
    CHECK(file.contains(name));
  CHECK(file.tensor("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight").sizes() == at::IntArrayRef({6, 16}));
  CHECK(file.tensor("diffusion_model.single_blocks.2.linear1.lora_B.weight").sizes() == at::IntArrayRef({112, 8}));
  write_lora(path, random_adapters("hunyuan_15_t2v", all_targets("hunyuan_15_t2v")), row(kHunyuan15),
             LoraFormat::kComfyUi, at::kFloat);
  CHECK(SafetensorsFile(path).contains("diffusion_model.double_blocks.2.img_attn.qkv.lora_A.weight"));
  CHECK(SafetensorsFile(path).contains("diffusion_model.double_blocks.2.txt_mlp.0.lora_A.weight"));
  write_lora(path, random_adapters("hunyuan_15_t2v", all_targets("hunyuan_15_t2v")), row(kHunyuan15),
             LoraFormat::kKohya, at::kFloat);
  CHECK(SafetensorsFile(path).contains("lora_unet_double_blocks_2_img_attn_q.lora_down.weight"));
}

TEST_CASE("a fused adapter with one A for its parts comes back as it was") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/lora.safetensors", again = folder.path() + "/again.safetensors";
  const std::string module = "lora_unet_single_blocks_0_linear1", swapped = "lora_unet_final_layer_adaLN_modulation_1";
  at::manual_seed(3);
  const at::Tensor a = at::randn({4, 16}), b = at::randn({112, 4});
  write_safetensors(path, {{module + ".lora_down.weight", a},
                           {module + ".lora_up.weight", b},
                           {module + ".alpha", at::full({}, 2.0)},
                           {swapped + ".lora_down.weight", a},
                           {swapped + ".lora_up.weight", b.narrow(0, 0, 32).clone()}});
  const std::vector<Adapter> adapters = read_lora({path}, row(kHunyuan), at::kCPU);
  REQUIRE(adapters.size() == 5);
  for (const Adapter& adapter : adapters)
    if (adapter.module == "norm_out.linear")
      CHECK(adapter.low_rank.b.equal(at::cat({b.narrow(0, 16, 16), b.narrow(0, 0, 16)})));
  write_lora(again, adapters, row(kHunyuan), LoraFormat::kKohya, at::kFloat);
  const SafetensorsFile found(again);
  CHECK(found.tensor(module + ".lora_down.weight").equal(a));
  CHECK(found.tensor(module + ".lora_up.weight").equal(b));
  CHECK(found.tensor(module + ".alpha").item<float>() == 2.0F);
  CHECK(found.tensor(swapped + ".lora_up.weight").equal(b.narrow(0, 0, 32)));
}

TEST_CASE("a LoRA without some of a fused map's parts has zeros there") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/lora.safetensors";
  const std::vector<Adapter> adapters = random_adapters("hunyuan_t2v", {"attn.to_k", "proj_mlp"});
  write_lora(path, adapters, row(kHunyuan), LoraFormat::kComfyUi, at::kFloat);
  check_same_products(read_lora({path}, row(kHunyuan), at::kCPU), adapters);
  // The size of a missing proj_mlp is the model's affair.
  const std::vector<Adapter> queries = random_adapters("hunyuan_t2v", {"attn.to_q"});
  const auto write = [&](const ShapeOf& shape_of) {
    write_lora(path, queries, row(kHunyuan), LoraFormat::kComfyUi, at::kFloat, {}, shape_of);
  };
  CHECK(contains(refusal_of([&] { write({}); }), "proj_mlp"));
  write(shapes_of(load("hunyuan_t2v", fixture_path("hunyuan_t2v"))->parameters()));
  check_same_products(read_lora({path}, row(kHunyuan), at::kCPU), queries);
  CHECK(SafetensorsFile(path).tensor("diffusion_model.single_blocks.0.linear1.lora_B.weight").size(0) == 112);
}

TEST_CASE("a LoRA in ComfyUI's names that diffusers takes for another model's is told about") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/lora.safetensors", out = folder.path() + "/out.safetensors";
  struct Case {
    std::vector<std::string> targets;
    bool read;
  };
  for (const Case& c : {Case{{"attn.to_out.0"}, false}, Case{{"single_transformer_blocks.*.attn.to_q"}, false},
                        Case{{"transformer_blocks.*.attn.add_q_proj"}, false},
                        Case{{"attn.to_out.0", "transformer_blocks.*.attn.to_k"}, true}}) {
    INFO(c.targets.front());
    const std::vector<Adapter> adapters = random_adapters("hunyuan_t2v", c.targets);
    CHECK(missing_for_diffusers(adapters, row(kHunyuan)) == (c.read ? "" : "img_attn_qkv"));
    if (contains(c.targets.front(), "single")) continue;  // whose file needs the size of proj_mlp
    write_lora(path, adapters, row(kHunyuan), LoraFormat::kDiffusers, at::kFloat);
    for (const char* format : {"comfyui", "kohya", "diffusers"}) {
      const std::string words = convert_lora({path}, out, format, 1, at::kFloat, kHunyuan);
      CHECK(contains(words, "no name has 'img_attn_qkv'") == (!c.read && format == std::string("comfyui")));
    }
  }
  CHECK(missing_for_diffusers(random_adapters("hunyuan_15_t2v", {"attn.to_out.0"}), row(kHunyuan15)).empty());
}

TEST_CASE("a LoRA of fused maps is merged as one of the maps apart") {
  const TemporaryFolder folder;
  for (const std::string fixture : kFixtures) {
    const Architecture& architecture = architecture_of(hunyuan_config(fixture));
    const auto adapters = random_adapters(fixture, all_targets(fixture));
    const auto change = products(adapters);
    const auto plain = load(fixture, fixture_path(fixture));
    for (const char* format : {"comfyui", "kohya", "diffusers"}) {
      ConvertOptions options = conversion(fixture_path(fixture), folder.path() + "/merged", "diffusers");
      options.loras = {folder.path() + "/lora.safetensors"};
      options.lora_strength = 0.5;
      write_lora(options.loras[0], adapters, architecture, lora_format(format), at::kFloat);
      convert_weights(options);
      const auto merged = load(fixture, options.out);
      for (const auto& [module, product] : change) {
        INFO(fixture << " " << format << " " << module);
        const std::string name = module + ".weight";
        const at::Tensor expected = parameter(*plain, name).tensor.detach().to(at::kDouble) + 0.5 * product;
        CHECK(relative_error(parameter(*merged, name).tensor.detach(), expected) < 1e-6);
      }
      fs::remove_all(options.out);
    }
  }
}

TEST_CASE("LoRA keys of HunyuanVideo's tools are read") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/lora.safetensors";
  const auto modules = [&](const char* architecture, const std::string& module, int64_t out, int64_t in = 16) {
    write_safetensors(
        path, {{module + ".lora_A.weight", at::ones({2, in})}, {module + ".lora_B.weight", at::ones({out, 2})}});
    std::string names;
    for (const Adapter& adapter : read_lora({path}, row(architecture), at::kCPU))
      names += adapter.module + fmt::format(":{} ", adapter.low_rank.b.size(0));
    return names;
  };
  const std::string qkv =
      "transformer_blocks.0.attn.to_k:16 transformer_blocks.0.attn.to_q:16 "
      "transformer_blocks.0.attn.to_v:16 ";
  const auto sorted = [&](const std::string& names) {
    return contains(names, "to_q:16") && contains(names, "to_k:16") && contains(names, "to_v:16") &&
           names.size() == qkv.size();
  };
  for (const char* name :
       {"transformer.double_blocks.0.img_attn_qkv", "diffusion_model.double_blocks.0.img_attn_qkv",
        "diffusion_model.double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn_qkv",
        "Hunyuan_video_I2V_lora_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_attn_qkv"}) {
    INFO(name);
    CHECK(sorted(modules(kHunyuan, name, 48)));
    CHECK(sorted(modules(kHunyuan15, name, 48)));
  }
  CHECK(modules(kHunyuan15, "double_blocks.0.img_attn_q", 16) == "transformer_blocks.0.attn.to_q:16 ");
  CHECK(modules(kHunyuan15, "lora_unet_double_blocks_0_img_mod_lin", 96) == "transformer_blocks.0.norm1.linear:96 ");
  CHECK(modules(kHunyuan15, "lora_unet_double_blocks_0_img_mlp_fc1", 64) == "transformer_blocks.0.ff.net.0.proj:64 ");
  CHECK(modules(kHunyuan15, "lora_unet_double_blocks_0_img_mlp_0", 64) == "transformer_blocks.0.ff.net.0.proj:64 ");
  CHECK(modules(kHunyuan, "diffusion_model.single_blocks.1.linear2", 16, 80) ==
        "single_transformer_blocks.1.proj_out:16 ");
  CHECK(contains(modules(kHunyuan, "txt_in.individual_token_refiner.blocks.0.self_attn_qkv", 48),
                 "context_embedder.token_refiner.refiner_blocks.0.attn.to_v:16"));
}

TEST_CASE("a LoRA file whose names two versions have is asked about") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/lora.safetensors", out = folder.path() + "/out.safetensors";
  const auto convert = [&](const std::string& architecture) {
    ConvertOptions options = conversion(path, out, "comfyui");
    options.architecture = architecture;
    return refusal_of([&] { convert_weights(options); });
  };
  write_lora(path, random_adapters("hunyuan_15_t2v", {"attn.to_q"}), row(kHunyuan15), LoraFormat::kDiffusers,
             at::kFloat);
  CHECK(contains(convert(""), "--architecture: expected one of hunyuan_video, hunyuan_video_15"));
  CHECK(convert(kHunyuan15).empty());
  CHECK(SafetensorsFile(out).contains("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"));
  CHECK(convert(kHunyuan).empty());
  CHECK(SafetensorsFile(out).contains("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight"));
  CHECK(contains(convert("flux"), "wan"));
  write_lora(path, random_adapters("hunyuan_t2v", {"attn.to_q", "proj_mlp"}), row(kHunyuan), LoraFormat::kDiffusers,
             at::kFloat);
  CHECK(&architecture_of_lora(path) == &row(kHunyuan));
}

TEST_CASE("rows of a table are no linear map for a LoRA") {
  const auto model = load("hunyuan_15_t2v", fixture_path("hunyuan_15_t2v"));
  for (const std::string& module : lora_modules({"*"}, row(kHunyuan15), model->parameters()))
    CHECK(module != "cond_type_embed");
}
