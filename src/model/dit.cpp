#include "model/dit.h"

#include <map>

#include "core/check.h"
#include "model/common/parameters.h"
#include "model/wan/wan_dit.h"
#include "model/wan/wan_parameters.h"

namespace vmoba::model {
namespace {

struct Architecture {
  void (*validate)(const ModelConfig&);
  std::vector<ParameterSpec> (*specs)(const ModelConfig&);
  std::unique_ptr<Dit> (*make)(const ModelConfig&, const attention::AttentionConfig&, uint64_t, at::Device);
};

// One line per model.
const std::map<std::string, Architecture>& architectures() {
  static const std::map<std::string, Architecture> table = {
      {"wan", {validate_wan, wan_parameter_specs, make_wan_dit}},
  };
  return table;
}

const Architecture& architecture(const std::string& name) {
  const auto found = architectures().find(name);
  std::string known;
  for (const auto& entry : architectures()) known += (known.empty() ? "" : ", ") + entry.first;
  VMOBA_CHECK_INPUT(found != architectures().end(), "expected model.architecture among {}, found '{}'", known, name);
  return found->second;
}

}  // namespace

void ModelConfig::visit(ConfigVisitor& v) {
  std::vector<std::string> known;
  for (const auto& entry : architectures()) known.push_back(entry.first);
  v.field("architecture", architecture, "Kind of transformer.", one_of(known));
  v.field("layers", layers, "Transformer blocks.", at_least(1));
  v.field("heads", heads, "Attention heads; the width is heads * head_dim.", at_least(1));
  v.field("head_dim", head_dim, "Size of an attention head; even.", at_least(6));
  v.field("ffn_dim", ffn_dim, "Hidden width of the feed-forward.", at_least(1));
  v.field("in_channels", in_channels, "Latent channels in; those of the codec.", at_least(1));
  v.field("out_channels", out_channels, "Latent channels out; those of the codec.", at_least(1));
  v.field("text_dim", text_dim, "Width of the text embeddings; that of the text encoder.", at_least(1));
  v.field("freq_dim", freq_dim, "Width of the sinusoidal timestep embedding; even.", at_least(2));
  v.field("patch_size", patch_size, "Latents per token along (t, h, w).", list_of(3, 1));
  v.field("eps", eps, "Added to variances in the normalisations.", above(0));
  v.field("cross_attn_norm", cross_attn_norm, "Layer norm before cross attention.");
  v.field("weights", weights,
          "Pretrained weights: a diffusers folder or a safetensors file with diffusers' names. Empty: random.");
  v.field("compute_dtype", compute_dtype, "Type of activations and matrix products; weights stay fp32.",
          one_of({"bf16", "fp32"}));
  v.field("activation_checkpointing", activation_checkpointing,
          "Recompute each block in backward: less memory, about a third more time.");
}

void ModelConfig::validate() const {
  const Architecture& known = model::architecture(architecture);
  VMOBA_CHECK_INPUT(patch_size.size() == 3, "expected three sizes in model.patch_size, found {}", patch_size.size());
  known.validate(*this);
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const ParameterSpec& spec : architecture(config.architecture).specs(config)) count += spec.numel();
  return count;
}

std::unique_ptr<Dit> make_dit(const ModelConfig& config, const attention::AttentionConfig& attention, uint64_t seed,
                              at::Device device) {
  config.validate();
  attention.validate();
  return architecture(config.architecture).make(config, attention, seed, device);
}

}  // namespace vmoba::model
