#include "model/wan/wan_work.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/common/map_work.h"
#include "model/wan/wan_config.h"
#include "model/wan/wan_parameters.h"

namespace vmoba::model {
namespace {

constexpr int64_t kClipTokens = 257;  // of one image: 16 x 16 patches and the class token of ViT-H/14

// How often the maps of a sample are applied.
struct WorkRows {
  double tokens, text, image;
};

void add_map(const ParameterSpec& spec, const WorkRows& rows, std::vector<ForwardWork>& out) {
  if (!is_map(spec)) return;
  const auto is_of = [&](std::initializer_list<const char*> parts) {
    return std::any_of(parts.begin(), parts.end(),
                       [&](const char* part) { return spec.name.find(part) != std::string::npos; });
  };
  MapUse use;
  if (is_of({"time_embedder.", "time_proj."})) {
    use.rows = 1;
  } else if (is_of({"text_embedder.", "attn2.to_k.", "attn2.to_v."})) {
    use.rows = rows.text;
  } else if (is_of({"image_embedder.", "attn2.add_"})) {
    use.rows = rows.image;
  } else {
    use.rows = rows.tokens;
    use.on_tokens = use.kept = !is_of({"patch_embedding."});
  }
  out.push_back(map_work(spec, use));
}

}  // namespace

std::vector<ForwardWork> wan_forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                          const attention::Grid& grid, int64_t text_tokens, double density) {
  const double tokens = double(grid.tokens()), text = double(text_tokens);
  const double width = double(config.heads * config.head_dim);
  const int64_t positions = config.own<WanConfig>().image_pos_tokens;
  const double image = config.image_dim == 0 ? 0 : double(positions ? positions : kClipTokens);
  const WorkRows rows{tokens, text, image};
  std::vector<ForwardWork> out, last;
  for (const ParameterSpec& spec : wan_outer_specs(config))
    add_map(spec, rows, spec.name.starts_with("proj_out") ? last : out);
  for (int64_t i = 0; i < config.layers; ++i) {
    const attention::LayerAttention layer = attention::layer_attention(attention, i, /*dense=*/false);
    const std::string prefix = fmt::format("blocks.{}.", i);
    const double self = attention::layer_flops(layer, grid, config.heads, config.head_dim, density);
    for (const ParameterSpec& spec : wan_block_specs(config, i)) {
      if (spec.name.ends_with("attn1.to_out.0.weight"))
        out.push_back({"", self, tokens, true, prefix + "attn1", width});
      if (spec.name.ends_with("attn2.to_out.0.weight"))
        out.push_back({"", 4 * (text + image) * tokens * width, tokens, true, prefix + "attn2", width});
      add_map(spec, rows, out);
    }
  }
  out.insert(out.end(), last.begin(), last.end());
  return out;
}

// A block keeps, besides its input: the normed input, q and k before and after their norms, v, the attended rows, their
// map and the sum with it; the norm of that, q of the text before and after its norm, the rows attended to the text,
// the sum with their map; its norm, the feed-forward's hidden rows before and after GELU (in fp8 before it alone), its
// result. Without the norm before the text there is one less. In backward of the feed-forward all but its result are
// there, with the block's result, two gradients of its width and a third hidden one. The text's rows are few.
//
// Forward moves 2 rows of the width for the first norm, 4 for each of two residuals with the norms of their sums, 3 for
// the last residual, 2 for each of three norms of heads, and the hidden rows twice for GELU. In backward a norm of
// heads moves 3, a gated sum 3, the first norm 4 with what comes to its input beside it, the residuals with norms 6 and
// 4; the hidden rows of GELU and the sums for biases count together as 3 hidden rows.
std::vector<BlockActivations> wan_activations(const ModelConfig& config) {
  const WanConfig& wan = config.own<WanConfig>();
  const double width = double(config.heads * config.head_dim), ffn = double(wan.ffn_dim);
  const double kept = wan.cross_attn_norm ? 15 : 14;  // beside input, hidden rows and result
  BlockActivations block{config.layers,
                         width,
                         (kept + 2) * width + 2 * ffn,
                         (kept + 3) * width + 3 * ffn,
                         /*with_text=*/false,
                         19 * width + 2 * ffn,
                         26 * width + 3 * ffn};
  if (config.linear_compute == "fp8") {
    block.kept -= ffn;
    const bool all = config.fp8_maps == "all";
    add_quantising({(all ? 5 : 1) * width, (all ? 7 : 1) * width, ffn}, block);
  }
  return {block};
}

}  // namespace vmoba::model
