#include "model/hunyuan/hunyuan_work.h"

#include <algorithm>

#include "model/common/map_work.h"
#include "model/hunyuan/hunyuan_config.h"
#include "model/hunyuan/hunyuan_parameters.h"

namespace vmoba::model {
namespace {

bool is_of(const std::string& name, std::initializer_list<const char*> parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](const char* part) { return name.find(part) != std::string::npos; });
}

// How often a map is applied to a sample.
double rows_of(const std::string& name, double video, double text) {
  if (name.starts_with("single_transformer_blocks.")) return is_of(name, {".norm.linear."}) ? 1 : video + text;
  if (is_of(name, {"norm1.linear.", "norm1_context.linear.", "norm_out.linear.", "time_text_embed.", "time_embed."}))
    return 1;
  // Whether a prompt has glyphs and a sample an image is not known here; their few rows count with the text.
  if (is_of(name, {"context_embedder_2.", "image_embedder.", "cond_type_embed."})) return 0;
  const bool of_text = is_of(name, {"context_embedder.", ".add_", "to_add_out.", "ff_context."});
  return of_text ? text : video;
}

void add_map(const ParameterSpec& spec, double video, double text, std::vector<ForwardWork>& out) {
  if (!is_map(spec)) return;
  MapUse use;
  use.rows = rows_of(spec.name, video, text);
  if (use.rows == 0) return;
  const bool of_block = spec.name.find("transformer_blocks.") != std::string::npos;
  use.on_tokens = use.rows > 1 && (of_block || spec.name.starts_with("proj_out."));
  use.kept = use.on_tokens && of_block;
  out.push_back(map_work(spec, use));
}

}  // namespace

std::vector<ForwardWork> hunyuan_forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                              const attention::Grid& grid, int64_t text_tokens, double density) {
  const double video = double(grid.tokens()), text = double(text_tokens);
  const double width = double(config.heads * config.head_dim);
  std::vector<ForwardWork> out, last;
  for (const ParameterSpec& spec : hunyuan_outer_specs(config))
    add_map(spec, video, text, spec.name.starts_with("proj_out") ? last : out);
  for (int64_t i = 0; i < layer_count(config); ++i) {
    const attention::LayerAttention layer = attention::layer_attention(attention, i, /*dense=*/false);
    const std::string prefix = hunyuan_block_prefix(config, i);
    // Text attends to all and all attend to text, whatever the video's density is.
    const double joint = attention::layer_flops(layer, grid, config.heads, config.head_dim, density) +
                         4 * text * (2 * video + text) * width;
    for (const ParameterSpec& spec : hunyuan_block_specs(config, i)) {
      const bool behind = spec.name == prefix + (i < config.layers ? "attn.to_out.0.weight" : "proj_out.weight");
      if (behind) out.push_back({"", joint, video + text, true, prefix + "attn", width});
      add_map(spec, video, text, out);
    }
  }
  out.insert(out.end(), last.begin(), last.end());
  return out;
}

// A double block keeps, besides its input: the normed input, q and k before their norms, q, k and v of both streams,
// the attended rows, their map, the sum with it, its norm, the feed-forward's hidden rows before and after GELU (in fp8
// before it alone), its result. At the end of forward the result lies beside these in the parts that it was put
// together of, with q, k and v of the video stream and the gradient of the result; in backward of the feed-forward, all
// but its result, with three of its width and three hidden ones.
//
// A single block keeps the normed input, q, k, v, q and k behind their norms, hidden rows, the attended ones joined
// with the activated hidden ones, and their map. In backward of that map its input is there twice (the gradient, and
// the input or what the adapter adds to the gradient), with the result and two gradients.
//
// What they move is counted as Wan's (wan_work.cpp); q, k, v and the result of a double block are joined out of two
// streams, and the parts of a stream give their gradients into rows of zeros.
std::vector<BlockActivations> hunyuan_activations(const ModelConfig& config) {
  const double width = double(config.heads * config.head_dim), ffn = double(hunyuan_of(config).ffn_dim);
  const double end_of_forward = 17 * width + 2 * ffn, feed_forward = 13 * width + 3 * ffn;
  std::vector<BlockActivations> out = {{config.layers, width, 12 * width + 2 * ffn,
                                        std::max(end_of_forward, feed_forward), /*with_text=*/true,
                                        21 * width + 2 * ffn, 33 * width + 3 * ffn}};
  if (hunyuan_of(config).single_layers > 0)
    out.push_back({hunyuan_of(config).single_layers, width, 10 * width + 2 * ffn, 12 * width + 3 * ffn,
                   /*with_text=*/true, 11 * width + 4 * ffn, 17 * width + 3 * ffn});
  if (config.linear_compute == "fp8") {
    out[0].kept -= ffn;
    const bool all = config.fp8_maps == "all";
    add_quantising({(all ? 3 : 1) * width, (all ? 5 : 1) * width, ffn}, out[0]);
    if (all && out.size() > 1) add_quantising({2 * width + ffn, 4 * width + ffn, 0}, out[1]);
  }
  return out;
}

}  // namespace vmoba::model
