// The denoiser's interface: a video diffusion transformer that predicts velocity from noisy latents.
//
// Shape letters: B samples, C latent channels, T latent frames, H x W latent size, G runs of tokens that share a
// timestep. A model owns its parameters (fp32 masters unless loaded otherwise) on one device; forward computes in
// `ForwardOptions::compute_dtype`, casting weights where they are used so that gradients reach the masters.
#pragma once
#include <ATen/core/Tensor.h>

#include <any>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "core/config.h"
#include "model/common/linear.h"
#include "model/conditions.h"
#include "model/offload.h"
#include "model/recompute_plan.h"

namespace vmoba::model {

// The `model:` group: what every architecture has, and the values of the chosen one. Where weights are given, sizes are
// theirs (model/weights/stated_sizes.h).
struct ModelConfig {
  std::string architecture;
  std::string task = "t2v";  // t2v | i2v | flf2v | ti2v: what the model is told about images (model/conditioning.h)
  int64_t layers = 30;       // blocks of the first kind; layer_count() has those of all kinds
  int64_t heads = 12;
  int64_t head_dim = 128;
  int64_t in_channels = 16;
  int64_t out_channels = 16;
  int64_t text_dim = 4096;
  int64_t image_dim = 0;  // width of image tokens; 0: the model takes none
  std::vector<int64_t> patch_size = {1, 2, 2};
  double eps = 1e-6;
  std::string weights;                  // folder or file with pretrained weights; empty: random from the seed
  std::string compute_dtype = "bf16";   // bf16 | fp32
  std::string weights_dtype = "fp32";   // fp32 | bf16 | fp8: how weights are kept; fp8 ones cannot be trained
  std::string linear_compute = "bf16";  // bf16 | fp8: products of the blocks' linear maps (common/fp8_linear.h)
  std::string fp8_maps = "all";         // all | feed_forward
  std::string pointwise = "auto";       // auto | reference: how norms, rotation and residuals run (common/pointwise.h)
  Recompute recompute = Recompute::kAuto;  // what backward computes again (model/recompute_plan.h)
  Offload offload = Offload::kNone;        // what waits in the host's memory (model/offload.h)
  // The weights that would state the sizes, where they are missing: then the sizes here mean nothing. Else empty.
  std::string missing_weights;
  // What attention learns in each layer, beside the parameters of pretrained files: see add_learnt().
  std::vector<std::vector<attention::LearntParameter>> learnt;

  ModelConfig();
  void visit(ConfigVisitor& v);
  void validate() const;

  // The architecture's own struct (WanConfig of "wan"), a value that is copied with this one. Defaults until it is
  // first changed; changing it as another struct begins with that one's defaults.
  template <typename Own>
  const Own& own() const {
    static const Own defaults;
    const Own* held = std::any_cast<Own>(&own_);
    return held ? *held : defaults;
  }
  template <typename Own>
  Own& own() {
    if (!std::any_cast<Own>(&own_)) own_ = Own();
    return std::any_cast<Own&>(own_);
  }

 private:
  void visit_fp8(ConfigVisitor& v);

  std::any own_;
};

struct Parameter {
  std::string name;  // in diffusers' layout: "blocks.0.attn1.to_q.weight"
  at::Tensor tensor;
  at::Tensor scale = {};                  // of an fp8 weight (scaled_weight in model/common/linear.h); undefined: 1
  std::vector<int64_t> whole_shape = {};  // where `tensor` is what a store keeps of it, or is packed
  std::optional<Packing> packing = {};    // of `tensor`, whose rows are bytes then
  bool optional = false;                  // what attention learns: files may lack it

  at::IntArrayRef shape() const { return whole_shape.empty() ? tensor.sizes() : at::IntArrayRef(whole_shape); }
};

// A low-rank adapter of one linear map.
struct Adapter {
  std::string module;  // in diffusers' layout: "blocks.0.attn1.to_q"
  LowRank low_rank;    // fp32, on the model's device
};

struct DitInput {
  at::Tensor latents_BCTHW;  // noisy latents; behind their channels those of the condition, where the model takes one
  at::Tensor timestep_BG;  // 0..1000: [B], or [B, G] for G equal runs of consecutive tokens (each latent frame, token)
  Conditions conditions = {};
};

class HostInputs;        // model/common/host_inputs.h
class SequenceParallel;  // model/sequence_parallel.h
class WeightStore;       // model/weight_store.h

struct ForwardOptions {
  at::ScalarType compute_dtype = at::kFloat;
  bool dense = false;            // full attention in every layer (dense steps)
  RecomputePlan recompute = {};  // of its blocks
  attention::AttentionStats* stats = nullptr;
  // Where several ranks compute this sample together, all with the same input; each gets the whole velocity, and
  // gradients of its tokens' part.
  SequenceParallel* sequence = nullptr;
  // In place of the model's own, so that one model can be seen under several; null: its own.
  const attention::AttentionConfig* attention = nullptr;
  double sparsity = 1;                // of attention::layer_attention()
  bool adapters = true;               // false: the model that they were attached to
  HostInputs* host_inputs = nullptr;  // where inputs of recomputed blocks wait for backward; null: on their device
};

class Dit {
 public:
  virtual ~Dit() = default;
  // Velocity [B, C_out, T, H, W] in fp32 (fp64 where compute_dtype is fp64). H and W must be multiples of the patch.
  virtual at::Tensor forward(const DitInput& input, const ForwardOptions& options) = 0;
  // All parameters of the model without its adapters, in a fixed order; leaf tensors, parts of them where several ranks
  // hold the model together.
  virtual const std::vector<Parameter>& parameters() const = 0;
  // What an optimiser changes: the adapters' matrices ("blocks.0.attn1.to_q.lora_A.weight") where there are any, else
  // parameters(). Leaf tensors that require grad.
  virtual const std::vector<Parameter>& trainable() const { return parameters(); }
  // Freezes the parameters and adds adapters, which share their tensors with the caller; several of one module add up.
  // Throws Error(kInput) naming an unknown module or a shape that does not fit.
  virtual void attach(const std::vector<Adapter>& adapters);
  // diffusers' transformer/config.json of this model.
  virtual std::string config_json() const = 0;
  // Patches of a latent video; throws Error(kInput) naming the multiple where sizes do not divide.
  virtual attention::Grid grid(int64_t latent_frames, int64_t latent_height, int64_t latent_width) const = 0;
  virtual attention::LayerAttention layer(int64_t index, bool dense) const = 0;
  virtual int64_t layers() const = 0;
};

// The following need the configuration only, not the model.

// Reads the headers of config.weights (nothing where it is empty). Throws Error(kInput) where files are missing, saying
// where to get them, or do not fit the configured model.
void check_weights(const ModelConfig& config);

// Throws Error(kInput) where the sizes are not known (config.missing_weights), saying where to get the weights.
void check_sizes_known(const ModelConfig& config);

// What a video should not show, where the user does not say: the published default of the architecture and task.
std::string default_negative_prompt(const ModelConfig& config);

// Blocks of all kinds, as attention and recomputing number them.
int64_t layer_count(const ModelConfig& config);

// Gives the model what its layers learn under this attention.
void add_learnt(ModelConfig& config, const attention::AttentionConfig& attention);

// Whether the model takes a guidance scale as an input (Conditions::guidance_B).
bool takes_guidance(const ModelConfig& config);

// Whether the model is told where a step leads to (Conditions::next_timestep_B).
bool takes_next_timestep(const ModelConfig& config);

int64_t parameter_count(const ModelConfig& config);

// The parameters without values (on the meta device), in the types that config.weights_dtype keeps them in; fp8 ones
// with a scale for each row.
std::vector<Parameter> parameter_shapes(const ModelConfig& config);

// A piece of a forward pass of one sample.
struct ForwardWork {
  std::string module;      // the linear map, in diffusers' layout; empty: attention of tokens, which has no weights
  double flops = 0;        // without adapters
  double rows = 0;         // that the map is applied to
  bool on_tokens = false;  // the map's input comes out of the blocks or maps before it, not from conditions
  // What a recomputed block can keep: its name with the block's prefix (model/common/kept.h) and values of each row;
  // empty: nothing.
  std::string result = {};
  double values = 0;
};

// Matrix products in the order of computing, with the given mean density of the sparse layers; norms and activations
// are left out.
std::vector<ForwardWork> forward_work(const ModelConfig& config, const attention::AttentionConfig& attention,
                                      const attention::Grid& grid, int64_t text_tokens, double density);
// Their sum.
double forward_flops(const ModelConfig& config, const attention::AttentionConfig& attention,
                     const attention::Grid& grid, int64_t text_tokens, double density);

// Makes the model `config.architecture`, with what `attention` learns, and with weights from config.weights, or random
// ones drawn from `seed`. With `store`, which must outlive it, every parameter goes there as soon as it is read or
// drawn.
std::unique_ptr<Dit> make_dit(const ModelConfig& config, const attention::AttentionConfig& attention, uint64_t seed,
                              at::Device device, WeightStore* store = nullptr);

}  // namespace vmoba::model
