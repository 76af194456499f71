#include "model/dit.h"

#include <ATen/ops/empty.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "core/file_kind.h"
#include "model/architecture.h"
#include "model/common/packed.h"
#include "model/weights/pretrained.h"

namespace vmoba::model {

void Dit::attach(const std::vector<Adapter>&) {
  throw_input("expected a model that takes LoRA adapters, found one that does not");
}

namespace {

// Of the architecture `name`: those in `config` where it is the configured one, else the defaults.
VisitFunction own_fields(ModelConfig& config, const std::string& name) {
  return [&config, name](ConfigVisitor& v) {
    ModelConfig defaults;
    architectures().find(name).visit(name == config.architecture ? config : defaults, v);
  };
}

}  // namespace

ModelConfig::ModelConfig() : architecture(default_architecture()) {}

void ModelConfig::visit(ConfigVisitor& v) {
  v.field("architecture", architecture, "Kind of transformer.", one_of(architectures().names()));
  v.field(
      "task", task,
      "t2v: from text. i2v: from text and the first frame (Wan2.1 I2V, Wan2.2 I2V-A14B, HunyuanVideo's I2V). flf2v: "
      "from text, first and last frame (Wan2.1 FLF2V). ti2v: from text, with or without the first frame (Wan2.2 "
      "TI2V-5B, HunyuanVideo 1.5).",
      one_of({"t2v", "i2v", "flf2v", "ti2v"}));
  v.field("layers", layers, "Transformer blocks; for HunyuanVideo those with two streams.", at_least(1));
  v.field("heads", heads, "Attention heads; the width is heads * head_dim.", at_least(1));
  v.field("head_dim", head_dim, "Size of an attention head; even.", at_least(6));
  v.field(
      "in_channels", in_channels,
      "Latent channels in: those of the codec, and those of the condition on an image (Wan's i2v and flf2v: as many "
      "again and 4 for the mask; HunyuanVideo 1.5: as many again and 1).",
      at_least(1));
  v.field("out_channels", out_channels, "Latent channels out; those of the codec.", at_least(1));
  v.field("text_dim", text_dim, "Width of the text embeddings; that of the text encoder.", at_least(1));
  v.field(
      "image_dim", image_dim,
      "Width of the image tokens that the model attends to: 1280 for Wan2.1 I2V, 1152 for HunyuanVideo 1.5, 0: none.",
      at_least(0));
  v.field("patch_size", patch_size, "Latents per token along (t, h, w).", list_of(3, 1));
  v.field("eps", eps, "Added to variances in the normalisations.", above(0));
  std::vector<ConfigVisitor::Kind> kinds;
  for (const std::string& name : architectures().names()) kinds.push_back({name, own_fields(*this, name)});
  v.kind_fields("architecture", architecture, kinds);
  v.field("weights", weights,
          "Pretrained weights: a folder, index or safetensors file in diffusers', the original or ComfyUI's layout "
          "(docs/pretrained.md). Empty: random.");
  v.field("compute_dtype", compute_dtype, "Type of activations and matrix products.", one_of({"bf16", "fp32"}));
  v.field("weights_dtype", weights_dtype,
          "How weights are kept. `fp32`: masters. `bf16`: matrices in bf16, and training of all weights rounds them "
          "stochastically; half the memory. `fp8` (the matrices of the blocks in e4m3 with scales, other matrices in "
          "bf16): a frozen base under LoRA, or sampling. `packed`: the same with the matrices of the blocks as a GGUF "
          "file packs them.",
          one_of({"fp32", "bf16", "fp8", "packed"}));
  v.field(
      "linear_compute", linear_compute,
      "Products of the blocks' linear maps. `fp8`: factors in e4m3 and, of gradients, e5m2, sums in fp32; on a GPU of "
      "compute capability 8.9 or later (docs/numerics.md).",
      one_of({"bf16", "fp8"}));
  v.kind_fields("linear_compute", linear_compute, {{"fp8", [this](ConfigVisitor& of) { visit_fp8(of); }}});
  v.field(
      "pointwise", pointwise,
      "Norms, rotation and gated residuals. `auto`: on a GPU in bf16 one kernel each. `reference`: one ATen operation "
      "after another, slower, to bisect a bad run.",
      one_of({"auto", "reference"}));
  v.field("recompute", recompute,
          "What backward computes again instead of keeping it. `block`: each block but its input, least memory. "
          "`attention`: the same without self attention. `none`: nothing. `auto`: on a GPU what does not fit into its "
          "memory, measured while training (docs/running.md); on a CPU `block`.");
  v.field(
      "offload", offload,
      "What waits in page-locked memory of the host while the GPU does not need it (docs/memory.md). `weights`: the "
      "frozen blocks under a LoRA. `activations`: the inputs of blocks between forward and backward. `both`. "
      "`auto`: on a GPU what is needed to fit into its memory, by the forecast. Values do not depend on it.");
}

void ModelConfig::visit_fp8(ConfigVisitor& v) {
  v.field("fp8_maps", fp8_maps, "Maps that compute in fp8: `all` of a block's, or the two of its `feed_forward`.",
          one_of({"all", "feed_forward"}));
}

void ModelConfig::validate() const {
  const Architecture& known = architecture_of(*this);
  VMOBA_CHECK_INPUT(patch_size.size() == 3, "expected three sizes in model.patch_size, found {}", patch_size.size());
  known.validate(*this);
}

namespace {

void check_weights_exist(const ModelConfig& config) {
  VMOBA_CHECK_INPUT(config.weights.empty() || std::filesystem::exists(config.weights),
                    "model.weights: expected pretrained weights at '{}', found {}; get {} (docs/pretrained.md), or set "
                    "model.weights to \"\" to train from random weights",
                    config.weights, what_is_this(config.weights), architecture_of(config).published_weights);
}

}  // namespace

void check_weights(const ModelConfig& config) {
  config.validate();
  check_weights_exist(config);
  if (!config.weights.empty()) check_pretrained(config);
}

void check_sizes_known(const ModelConfig& config) {
  const Architecture& known = architecture_of(config);
  VMOBA_CHECK_INPUT(config.missing_weights.empty(),
                    "expected the sizes of the model from the weights at '{}', found none there; get {}, or write the "
                    "sizes: model.{}",
                    config.missing_weights, known.published_weights, fmt::join(known.sizes, ", model."));
}

std::string default_negative_prompt(const ModelConfig& config) {
  return architecture_of(config).negative_prompt(config);
}

std::vector<ForwardWork> forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                      const attention::Grid& grid, int64_t text_tokens, double density) {
  return architecture_of(config).forward_work(config, attention, grid, text_tokens, density);
}

double forward_flops(const ModelConfig& config, const attention::AttentionConfig& attention,
                     const attention::Grid& grid, int64_t text_tokens, double density) {
  double sum = 0;
  for (const ForwardWork& work : forward_work(config, attention, grid, text_tokens, density)) sum += work.flops;
  return sum;
}

int64_t layer_count(const ModelConfig& config) {
  return architecture_of(config).layers(config);
}

void add_learnt(ModelConfig& config, const attention::AttentionConfig& attention) {
  attention::check_network(attention, layer_count(config), config.heads);
  config.learnt.resize(size_t(layer_count(config)));
  for (size_t i = 0; i < config.learnt.size(); ++i) {
    std::vector<attention::LearntParameter>& own = config.learnt[i];
    const attention::LayerAttention layer = attention::layer_attention(attention, int64_t(i), /*dense=*/false);
    for (const attention::LearntParameter& wanted : learnt_parameters(layer, config.heads, config.head_dim))
      if (std::none_of(own.begin(), own.end(), [&](const auto& one) { return one.name == wanted.name; }))
        own.push_back(wanted);
  }
}

bool takes_guidance(const ModelConfig& config) {
  return architecture_of(config).takes_guidance(config);
}

bool takes_next_timestep(const ModelConfig& config) {
  return architecture_of(config).takes_next_timestep(config);
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const ParameterSpec& spec : architecture_of(config).parameters(config)) count += spec.numel();
  return count;
}

std::vector<Parameter> parameter_shapes(const ModelConfig& config) {
  const at::TensorOptions meta = at::TensorOptions().device(at::kMeta);
  const std::map<std::string, Packing> packed = packed_parameters(config);
  std::vector<Parameter> out;
  for (const ParameterSpec& spec : architecture_of(config).parameters(config)) {
    if (const auto found = packed.find(spec.name); found != packed.end()) {
      const int64_t bytes = packed_row_bytes(found->second, spec.shape[1]);
      out.push_back(
          {spec.name, at::empty({spec.shape[0], bytes}, meta.dtype(at::kByte)), {}, spec.shape, found->second});
      continue;
    }
    const at::ScalarType dtype = kept_dtype(spec, config);
    out.push_back({spec.name, at::empty(spec.shape, meta.dtype(dtype))});
    if (c10::elementSize(dtype) == 1) out.back().scale = at::empty({spec.shape[0], 1}, meta.dtype(at::kFloat));
  }
  return out;
}

std::unique_ptr<Dit> make_dit(const ModelConfig& config, const attention::AttentionConfig& attention, uint64_t seed,
                              at::Device device, WeightStore* store) {
  config.validate();
  attention.validate();
  check_weights_exist(config);  // what is in them is checked as they are read
  ModelConfig learning = config;
  add_learnt(learning, attention);
  return architecture_of(config).make(learning, attention, seed, device, store);
}

}  // namespace vmoba::model
