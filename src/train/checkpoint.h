// Checkpoints of a run: <run.dir>/checkpoint-<step>/ with
//   transformer/config.json, transformer/diffusion_pytorch_model.safetensors   fp32 weights, diffusers' layout and keys
//   transformer_ema/...                                                        the moving average, where enabled
//   state/optimizer.safetensors, state/trainer.json, state/config.yaml         what an exact resume needs
// and of a LoRA run, whose base is not repeated, instead of the transformer folders
//   lora/<format>.safetensors, lora_ema/<format>.safetensors   for other tools, in lora.formats and lora.save_dtype
//   state/lora.safetensors, state/lora_ema.safetensors         the adapters in fp32
// A run of two experts (model.boundary) has all of the second one as well: transformer_2/, transformer_2_ema/,
// state/optimizer_2.safetensors, state/lora_2.safetensors, state/lora_2_ema.safetensors; and for other tools
// lora/<format>_high_noise.safetensors and lora/<format>_low_noise.safetensors.
//
// Written under a temporary name, every file fsynced, then the folder is renamed: a checkpoint-<step> folder is always
// complete. A failed write (full disk) removes what it wrote and leaves all older checkpoints alone.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/common/lora.h"
#include "train/expert.h"

namespace vmoba::train {

struct TrainerState {
  int64_t step = 0;         // optimiser steps done
  int64_t next_sample = 0;  // global sample number that comes next
  uint64_t seed = 0;
};

// Everything that a checkpoint holds.
struct CheckpointParts {
  std::vector<Expert>& experts;  // one or two
  std::string config_yaml;
  model::LoraConfig lora = {};  // enabled: the model's trainable tensors are adapters of it
};

// Saves and returns the folder; then deletes the oldest beyond `keep` (0 keeps all). Throws Error(kRuntime).
std::string save_checkpoint(const std::string& run_dir, const TrainerState& state, const CheckpointParts& parts,
                            int64_t keep);

// Loads weights, optimiser, EMA. Throws Error(kInput) naming what does not fit.
TrainerState load_checkpoint(const std::string& folder, const CheckpointParts& parts);

// Steps of the complete checkpoints in a run folder, ascending.
std::vector<int64_t> checkpoint_steps(const std::string& run_dir);
std::string checkpoint_path(const std::string& run_dir, int64_t step);

// Whether a checkpoint holds adapters and no transformer.
bool is_lora_checkpoint(const std::string& folder);

// Where a checkpoint keeps exactly what was trained of expert 0 or 1: a transformer's folder, or with `lora` a file of
// adapters. `average`: of the moving average.
std::string weights_path(const std::string& folder, size_t expert, bool lora, bool average);

// The adapters of an expert in a LoRA checkpoint, averaged ones where `average` says so, with the scale of `config`.
std::vector<model::Adapter> load_adapters(const std::string& folder, const model::LoraConfig& config, size_t expert,
                                          bool average, at::Device device);

// Makes the run folder and removes what an interrupted save left behind. Throws Error(kRuntime) where it cannot be
// written.
void prepare_run_folder(const std::string& run_dir);

// For a run that starts anew: an earlier run's files in `run_dir` are moved to "<run_dir>.1" (or the next free
// number), so that nothing is lost. Returns the new place, or nothing where the folder held no run.
std::optional<std::string> set_aside_earlier_run(const std::string& run_dir);

}  // namespace vmoba::train
