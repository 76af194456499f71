#include "model/weights/transformer_config.h"

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "core/file.h"

namespace vmoba::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kPublishedHeadDim = 128;

json from_original(const json& original, const std::string& path) {
  json out = {{"_class_name", "WanTransformer3DModel"}};
  const auto take = [&](const char* from, const char* to) {
    if (original.contains(from)) out[to] = original[from];
  };
  take("num_heads", "num_attention_heads");
  take("num_layers", "num_layers");
  take("ffn_dim", "ffn_dim");
  take("freq_dim", "freq_dim");
  take("in_dim", "in_channels");
  take("out_dim", "out_channels");
  take("text_dim", "text_dim");
  take("patch_size", "patch_size");
  take("eps", "eps");
  take("cross_attn_norm", "cross_attn_norm");
  const auto whole = [&](const char* key) {
    VMOBA_CHECK_INPUT(original[key].is_number_unsigned() && original[key].get<int64_t>() > 0,
                      "expected a positive whole number {} in '{}', found {}", key, path, original[key].dump());
    return original[key].get<int64_t>();
  };
  if (original.contains("dim") && original.contains("num_heads"))
    out["attention_head_dim"] = whole("dim") / whole("num_heads");
  return out;
}

// Shapes of a transformer's tensors by name.
class Shapes {
 public:
  explicit Shapes(const WeightFiles& files) : files_(files) {}

  bool has(const std::string& name) const { return files_.entries().contains(name); }
  int64_t size(const std::string& name, size_t rank, size_t dimension) const {
    VMOBA_CHECK_INPUT(has(name), "expected a Wan transformer at '{}', found no tensor '{}'", files_.folder(), name);
    const std::vector<int64_t>& shape = files_.info(name).shape;
    VMOBA_CHECK_INPUT(shape.size() == rank, "expected {} dimensions of '{}', found {}", rank, name, shape.size());
    return shape[dimension];
  }
  int64_t blocks() const {
    int64_t count = 0;
    while (has("blocks." + std::to_string(count) + ".attn1.to_q.weight")) ++count;
    return count;
  }

 private:
  const WeightFiles& files_;
};

}  // namespace

json read_transformer_config(const std::string& path) {
  const json parsed = json::parse(read_file(path, kMaxConfigBytes, "a model configuration"), nullptr, false);
  VMOBA_CHECK_INPUT(parsed.is_object(),
                    "expected a model configuration at '{}' to be a JSON object, found something else", path);
  return parsed.contains("num_heads") || parsed.value("_class_name", json()) == "WanModel" ? from_original(parsed, path)
                                                                                           : parsed;
}

json transformer_config_of(const WeightFiles& files, int64_t head_dim) {
  const std::string path = files.folder() + "/config.json";
  const json beside = std::filesystem::exists(path) ? read_transformer_config(path) : json::object();
  const Shapes shapes(files);
  const std::string patch = "patch_embedding.weight", image = "condition_embedder.image_embedder.";
  const int64_t width = shapes.size(patch, 5, 0);
  const std::vector<int64_t> patch_size = {shapes.size(patch, 5, 2), shapes.size(patch, 5, 3),
                                           shapes.size(patch, 5, 4)};
  const int64_t patch_values = std::max<int64_t>(1, patch_size[0] * patch_size[1] * patch_size[2]);
  if (head_dim == 0) head_dim = beside.value("attention_head_dim", kPublishedHeadDim);
  VMOBA_CHECK_INPUT(head_dim > 0 && width > 0 && width % head_dim == 0,
                    "expected a width that is a multiple of the head size {}, found {}; name the size (--head-dim)",
                    head_dim, width);
  const bool has_image = shapes.has(image + "norm1.weight");
  const std::string positions = image + "pos_embed";
  return {{"_class_name", "WanTransformer3DModel"},
          {"_diffusers_version", "0.42.1"},
          {"added_kv_proj_dim", has_image ? json(width) : json()},
          {"attention_head_dim", head_dim},
          {"cross_attn_norm", shapes.has("blocks.0.norm2.weight")},
          {"eps", beside.value("eps", 1e-6)},
          {"ffn_dim", shapes.size("blocks.0.ffn.net.0.proj.weight", 2, 0)},
          {"freq_dim", shapes.size("condition_embedder.time_embedder.linear_1.weight", 2, 1)},
          {"image_dim", has_image ? json(shapes.size(image + "norm1.weight", 1, 0)) : json()},
          {"in_channels", shapes.size(patch, 5, 1)},
          {"num_attention_heads", width / head_dim},
          {"num_layers", shapes.blocks()},
          {"out_channels", shapes.size("proj_out.weight", 2, 0) / patch_values},
          {"patch_size", patch_size},
          {"pos_embed_seq_len", shapes.has(positions) ? json(shapes.size(positions, 3, 1)) : json()},
          {"qk_norm", "rms_norm_across_heads"},
          {"rope_max_seq_len", 1024},
          {"text_dim", shapes.size("condition_embedder.text_embedder.linear_1.weight", 2, 1)}};
}

json original_config(const json& diffusers) {
  const int64_t heads = diffusers.at("num_attention_heads"), head_dim = diffusers.at("attention_head_dim");
  const int64_t in = diffusers.at("in_channels"), out = diffusers.at("out_channels");
  const bool image = !diffusers.at("image_dim").is_null();
  const bool two_images = !diffusers.at("pos_embed_seq_len").is_null();
  // Wan's own names of its kinds: CLIP tokens make i2v or flf2v; 48 channels are TI2V-5B's.
  const char* kind = two_images ? "flf2v" : image || in > out ? "i2v" : out == 48 ? "ti2v" : "t2v";
  return {{"_class_name", "WanModel"},
          {"_diffusers_version", "0.30.0"},
          {"dim", heads * head_dim},
          {"eps", diffusers.at("eps")},
          {"ffn_dim", diffusers.at("ffn_dim")},
          {"freq_dim", diffusers.at("freq_dim")},
          {"in_dim", in},
          {"model_type", kind},
          {"num_heads", heads},
          {"num_layers", diffusers.at("num_layers")},
          {"out_dim", out},
          {"text_len", 512}};
}

}  // namespace vmoba::model
