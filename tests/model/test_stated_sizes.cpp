// Sizes of a model out of its weight files, name tables, and which architecture and layout a file is recognised as.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "model/wan/wan_parameters.h"
#include "model/wan_fixture.h"
#include "model/weights/stated_sizes.h"
#include "model/weights/weight_files.h"
#include "support/messages.h"
#include "support/process.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;
using vmoba::test::TemporaryFolder;

// The configuration of a user who names weights and nothing else.
ModelConfig stated(const std::string& weights, const std::set<std::string>& given = {}, ModelConfig config = {}) {
  config.weights = weights;
  take_stated_sizes(config, weights, given);
  return config;
}

std::vector<int64_t> sizes_of(const ModelConfig& c) {
  const WanConfig& wan = c.own<WanConfig>();
  std::vector<int64_t> out = {c.layers,
                              c.heads,
                              c.head_dim,
                              c.in_channels,
                              c.out_channels,
                              c.text_dim,
                              c.image_dim,
                              wan.ffn_dim,
                              wan.freq_dim,
                              wan.image_pos_tokens,
                              int64_t(wan.cross_attn_norm)};
  out.insert(out.end(), c.patch_size.begin(), c.patch_size.end());
  return out;
}

// The tensors of a Wan of these sizes, zeros, in one file of its own folder.
std::string write_wan(const std::string& folder, const ModelConfig& config, const std::string& layout) {
  std::vector<NamedTensor> tensors;
  for (const ParameterSpec& spec : wan_parameter_specs(config))
    tensors.push_back({layout_named(wan_row(), layout).from_diffusers(spec.name).value(), at::zeros(spec.shape)});
  const std::string path = folder + "/x.safetensors";
  write_safetensors(path, tensors);
  return path;
}

}  // namespace

TEST_CASE("every size and the epsilon come from the weights and the config.json beside them") {
  for (const ModelConfig& expected :
       {wan_t2v_config(), wan_variant_config(), wan_i2v_config(), wan_flf2v_config(), wan_ti2v_config()}) {
    INFO(expected.weights);
    const ModelConfig found = stated(expected.weights);
    CHECK(sizes_of(found) == sizes_of(expected));
    CHECK(found.eps == expected.eps);
    CHECK(found.missing_weights.empty());
  }
  CHECK(sizes_of(stated("")) == sizes_of(ModelConfig()));
}

TEST_CASE("a key that the user wrote and that contradicts the file is refused with both values and the file") {
  ModelConfig config = wan_t2v_config();
  config.layers = 3;
  config.own<WanConfig>().ffn_dim = 55;
  const std::string path = config.weights;
  const std::string layers = refusal_of([&] { stated(path, {"layers"}, config); });
  CHECK(contains(layers, "model.layers: expected 2"));
  CHECK(contains(layers, "found 3"));
  CHECK(contains(layers, path));
  CHECK(contains(refusal_of([&] { stated(path, {"ffn_dim"}, config); }), "model.ffn_dim: expected 56"));
  CHECK(stated(path, {"heads", "task"}, config).layers == 2);  // only written keys are compared
  config.heads = 4;
  config.head_dim = 10;  // the same width; config.json knows better
  CHECK(contains(refusal_of([&] { stated(path, {"head_dim"}, config); }), "model.head_dim: expected 20"));
  CHECK(contains(refusal_of([&] { stated(path, {"heads"}, config); }), "model.heads: expected 2"));
}

TEST_CASE("where no file says how the width divides, the written key does, else 128") {
  const TemporaryFolder folder;
  ModelConfig config = wan_t2v_config();
  config.heads = 2;
  config.head_dim = 128;
  for (const std::string layout : {"diffusers", "original", "comfyui"}) {
    INFO(layout);
    const std::string path = write_wan(folder.path(), config, layout);
    CHECK(sizes_of(stated(path)) == sizes_of(config));
    ModelConfig written;
    written.heads = 8;
    CHECK(stated(path, {"heads"}, written).head_dim == 32);
    written.head_dim = 64;
    CHECK(stated(path, {"head_dim"}, written).heads == 4);
    CHECK(contains(refusal_of([&] { stated(path, {"heads", "head_dim"}, written); }), "model.heads: expected 4"));
    written.head_dim = 48;
    CHECK(contains(refusal_of([&] { stated(path, {"head_dim"}, written); }), "model.head_dim"));
  }
  // The original repository's keys.
  std::ofstream(folder.path() + "/config.json") << R"({"_class_name":"WanModel","dim":256,"num_heads":8,"eps":1e-5})";
  CHECK(stated(folder.path()).head_dim == 32);
  CHECK(stated(folder.path()).eps == 1e-5);
}

TEST_CASE("missing weights leave the sizes unknown, unless they are all written") {
  const std::string nowhere = "/nowhere/transformer";
  const ModelConfig unknown = stated(nowhere, {"layers", "heads"});
  CHECK(unknown.missing_weights == nowhere);
  const std::string says = refusal_of([&] { check_sizes_known(unknown); });
  CHECK(contains(says, nowhere));
  CHECK(contains(says, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"));
  CHECK(contains(says, "model.ffn_dim"));
  const ModelConfig known = stated(nowhere, {wan_row().sizes.begin(), wan_row().sizes.end()});
  CHECK(known.missing_weights.empty());
  CHECK_NOTHROW(check_sizes_known(known));
  const TemporaryFolder folder;  // there, but without weights
  CHECK(stated(folder.path()).missing_weights == folder.path());
}

TEST_CASE("a copy of a configuration has the architecture's own values, and they are its own") {
  ModelConfig one;
  CHECK(one.own<WanConfig>().ffn_dim == 8960);
  one.own<WanConfig>().ffn_dim = 7;
  ModelConfig two = one;
  CHECK(std::as_const(two).own<WanConfig>().ffn_dim == 7);
  two.own<WanConfig>().ffn_dim = 8;
  CHECK(one.own<WanConfig>().ffn_dim == 7);
}

TEST_CASE("files are recognised by the architecture's names, not by words that others have too") {
  CHECK(recognised_architecture({"blocks.0.self_attn.q.weight"}) == "wan");
  CHECK(recognised_architecture({"model.diffusion_model.head.modulation"}) == "wan");
  CHECK(recognised_architecture({"condition_embedder.time_proj.weight"}) == "wan");
  CHECK(recognised_architecture({"encoder.layers.0.self_attn.q_proj.weight"}).empty());  // CLIP
  CHECK(recognised_architecture({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight"}).empty());
  const auto layout = [](const std::string& name) {
    const Layout* found = find_layout(wan_row().layouts, {name});
    return found ? found->name : "";
  };
  CHECK(layout("blocks.0.self_attn.q.weight") == "original");
  CHECK(layout("diffusion_model.blocks.0.self_attn.q.weight") == "comfyui");
  CHECK(layout("blocks.0.attn1.to_q.weight") == "diffusers");
  CHECK(layout("x").empty());
}

TEST_CASE("a table renames blocks of several kinds, whose prefixes may differ, and reads flattened names") {
  const NameTable table = {{{"proj_out", "final_layer.linear"}},
                           {{"transformer_blocks.", "double_blocks.", {{"attn.to_out.0", "img_attn_proj"}}},
                            {"single_transformer_blocks.", "single_blocks.", {{"proj_out", "linear2"}}}}};
  using Names = std::vector<std::string>;
  CHECK(table.to_diffusers("double_blocks.12.img_attn_proj.bias") == Names{"transformer_blocks.12.attn.to_out.0.bias"});
  CHECK(table.from_diffusers("transformer_blocks.12.attn.to_out.0.bias") == "double_blocks.12.img_attn_proj.bias");
  CHECK(table.to_diffusers("single_blocks.3.linear2") == Names{"single_transformer_blocks.3.proj_out"});
  CHECK(table.from_diffusers("proj_out.weight") == "final_layer.linear.weight");
  CHECK((table.from_flattened("double_blocks_12_img_attn_proj") == Held{{"transformer_blocks.12.attn.to_out.0"}}));
  CHECK(table.from_flattened("_single_transformer_blocks_3_proj_out") ==
        Held{{"single_transformer_blocks.3.proj_out"}});
  CHECK((table.from_flattened("final_layer_linear") == Held{{"proj_out"}}));
  for (const char* name : {"double_blocks.12.linear2", "double_blocks.img_attn_proj", "double_blocks.1", "proj"})
    CHECK(table.to_diffusers(name).empty());
  CHECK(table.from_flattened("double_blocks_x_img_attn_proj").names.empty());
}

TEST_CASE("a block is what has a number behind the architecture's prefix") {
  CHECK(block_of(wan_row(), "blocks.11.attn1.to_q.weight") == "blocks.11.");
  CHECK(block_of(wan_row(), "proj_out.weight").empty());
  CHECK(block_of(wan_row(), "blocks.norm.weight").empty());
}
