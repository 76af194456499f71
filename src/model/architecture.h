// What the program knows about each kind of transformer: one row per architecture. Everything else (weight files, LoRA,
// forecasts, sharding, configuration) asks the row and knows no model. A row is made in the model's own folder and
// listed in architecture.cpp; docs/adding_a_model.md goes through it. Rows live as long as the program.
//
// Names of parameters and modules are diffusers'.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/registry.h"
#include "model/common/parameters.h"
#include "model/dit.h"
#include "model/weights/name_table.h"

namespace vmoba::model {

class WeightFiles;

enum class ImageInput {
  kNone,
  kMaskAndClip,    // channels behind the latents': a mask and the latents of (image, grey, ..., grey or last image)
  kLatentAndMask,  // channels behind the latents': the image's latents in the first latent frame, and a mask
  kFirstFrame,     // the first latent frame is the image's, at timestep 0
};

// How the published pipelines sample: what sample.* is where the user does not say. Defaults: Wan's.
struct PublishedSampling {
  int64_t steps = 50;
  double guidance = 5, shift = 5, fps = 16;
  std::string scheduler = "unipc";
};

struct LoraNames {
  std::vector<std::string> default_targets;  // patterns of lora.targets
  // Modules of a block, without the block's prefix, that readers of kohya's format insist on (diffusers does).
  std::vector<std::string> kohya_modules;
  // The layouts whose names files of these formats carry.
  std::string comfyui_layout, kohya_layout;
  // What diffusers knows a file of ComfyUI's format by, in one of its names; empty: it needs no such name.
  std::string comfyui_mark;
};

// What blocks of one kind hold in memory, in values of the compute dtype for each of their rows; what attention keeps
// of its selection comes on top (attention::selection_bytes). Counted from the operations of a block as the kernels of
// a GPU run them.
struct BlockActivations {
  int64_t blocks = 0;
  double input = 0;  // all that stays with activation checkpointing
  double kept = 0;   // for backward of a whole block, its input among it
  // The most that lies beside the input while a block is computed again and differentiated.
  double peak = 0;
  bool with_text = false;  // rows: video tokens and those of the text
  // What kernels other than products and attention read and write, forward and backward: norms, rotations, residuals,
  // GELU, joins, sums for biases.
  double moved_forward = 0, moved_backward = 0;
};

struct Architecture {
  // Configuration: the architecture's own keys of the `model:` group (ModelConfig::own), and checks beyond their
  // ranges.
  void (*visit)(ModelConfig&, ConfigVisitor&);
  void (*validate)(const ModelConfig&);
  // The published defaults.
  std::string (*negative_prompt)(const ModelConfig&);
  PublishedSampling (*sampling)(const ModelConfig&);

  // Of model::layer_count, model::takes_guidance and model::takes_next_timestep.
  int64_t (*layers)(const ModelConfig&);
  bool (*takes_guidance)(const ModelConfig&);
  bool (*takes_next_timestep)(const ModelConfig&);
  // How an image is told for the configured task.
  ImageInput (*image_input)(const ModelConfig&);

  // All parameters in a fixed order, which is that of the optimiser's state.
  std::vector<ParameterSpec> (*parameters)(const ModelConfig&);
  // "blocks.": the parameters whose names begin with "blocks.<number>." form a block, the unit of sharding, recomputing
  // and offloading. Those of no block are one unit more.
  std::vector<std::string> blocks;

  // Weight files. `layouts` begins with diffusers'.
  std::string published_weights;  // where to get them
  std::vector<Layout> layouts;
  LoraNames lora;
  // Keys of the `model:` group that weights state, and reading them: shapes, and `beside`, the config.json beside the
  // weights in diffusers' keys ({} without). Where both leave open how a width divides into heads, the keys in `given`
  // keep what `config` has. Throws Error(kInput) where the file is no such transformer.
  std::vector<std::string> sizes;
  void (*read_sizes)(const WeightFiles& files, const nlohmann::json& beside, const std::set<std::string>& given,
                     ModelConfig& config);
  // A config.json as found at `path`, diffusers' or the original repository's, in diffusers' keys; keys that it does
  // not settle are absent.
  nlohmann::json (*diffusers_config)(const nlohmann::json& found, const std::string& path);
  // Texts of diffusers' transformer/config.json and of the original repository's.
  std::string (*config_json)(const ModelConfig&);
  std::string (*original_config_json)(const ModelConfig&);

  // Forecasts: see model::forward_work; and memory.
  std::vector<ForwardWork> (*forward_work)(const ModelConfig&, const attention::AttentionConfig&,
                                           const attention::Grid&, int64_t text_tokens, double density);
  std::vector<BlockActivations> (*activations)(const ModelConfig&);

  // `store` may be null.
  std::unique_ptr<Dit> (*make)(const ModelConfig&, const attention::AttentionConfig&, uint64_t seed, at::Device,
                               WeightStore* store);
};

const Registry<Architecture>& architectures();
const Architecture& architecture_of(const ModelConfig& config);
std::string default_architecture();

// The architecture that has a layout which holds these names of a weight file; "" where none has.
std::string recognised_architecture(const std::vector<std::string>& stored_names);

// Whether `fits` is true of the module's own name or of its name in one of the layouts.
bool any_name(const Architecture& architecture, const std::string& module,
              const std::function<bool(const std::string&)>& fits);

// "blocks.3." of "blocks.3.attn1.to_q.weight"; "" of a parameter outside the blocks.
std::string block_of(const Architecture& architecture, const std::string& name);

// Throws Error(kInput) naming the layouts that the architecture has.
const Layout& layout_named(const Architecture& architecture, const std::string& name);

}  // namespace vmoba::model
