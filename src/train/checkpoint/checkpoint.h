// Checkpoints of a run: <run.dir>/checkpoint-<step>/ with
//   transformer/config.json, transformer/diffusion_pytorch_model.safetensors   fp32 weights, diffusers' layout and keys
//   transformer_ema/...                                                        the moving average, where enabled
//   state/optimizer.safetensors, state/trainer.json, state/config.yaml         what an exact resume needs (manifest.h)
//   state/checksums.json                                                       what all files held (checksums.h)
// and of a LoRA run, whose base is not repeated, instead of the transformer folders
//   lora/<format>.safetensors, lora_ema/<format>.safetensors   for other tools, in lora.formats and lora.save_dtype
//   state/lora.safetensors, state/lora_ema.safetensors         the adapters in fp32
// A run of several experts has all of the second one as well (and so on): transformer_2/, transformer_2_ema/,
// state/optimizer_2.safetensors, state/lora_2.safetensors, state/lora_2_ema.safetensors; and for other tools
// lora/<format>_high_noise.safetensors and lora/<format>_low_noise.safetensors (of more than two: _expert_1 and so on).
//
// Every safetensors file names its step and run in its metadata. The same whatever the number of ranks and however they
// share the state, so that any other number can go on. Written by CheckpointWriter (checkpoint_writer.h).
#pragma once
#include <map>
#include <string>
#include <vector>

#include "model/adapter/lora.h"
#include "train/checkpoint/manifest.h"
#include "train/expert.h"

namespace vmoba::train {

// Everything that a checkpoint holds.
struct CheckpointParts {
  std::vector<Expert>& experts;
  std::string config_yaml;
  model::LoraConfig lora = {};                        // enabled: the model's trainable tensors are adapters of it
  const model::Architecture* architecture = nullptr;  // of the model; only needed with lora
  RunRecord record = {};
  std::map<std::string, std::string> lora_metadata = {};  // of the files for other tools (lora_metadata.h)
};

// Loads weights, optimiser, EMA: of each tensor what this rank holds. Throws Error(kInput) naming what does not fit,
// what is damaged (checksums.h), and values that are not finite.
TrainerState load_checkpoint(const std::string& folder, const CheckpointParts& parts);
// The same of a checkpoint whose checksums the ranks have compared together.
TrainerState load_verified_checkpoint(const std::string& folder, const CheckpointParts& parts);

// Throws Error(kInput) naming the first tensor of the transformers, adapters among them, that is not finite.
void check_finite_weights(const std::vector<Expert>& experts, const std::string& origin);

// Whether a checkpoint holds adapters and no transformer.
bool is_lora_checkpoint(const std::string& folder);

// The adapters of an expert in a LoRA checkpoint, averaged ones where `average` says so, with the scale of `config`.
std::vector<model::Adapter> load_adapters(const std::string& folder, const model::LoraConfig& config,
                                          const model::Architecture& architecture, size_t expert, bool average,
                                          at::Device device);

}  // namespace vmoba::train
