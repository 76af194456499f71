// The transformers of a run: those of the `experts:` list in the order of denoising, or without a list the one of
// model.weights.
#pragma once
#include <cstddef>

#include "config/root_config.h"

namespace vmoba {

// At least 1.
size_t expert_count(const RootConfig& config);

// The groups `model:` and `lora:` with the files of one expert. The first throws Error(kInput) where the list names
// weights that do not exist.
model::ModelConfig expert_model(const RootConfig& config, size_t expert);
// The frozen teacher beside it, kept in the compute type (train.distill; with LoRA the base teaches instead).
model::ModelConfig teacher_model(const RootConfig& config, size_t expert);
model::LoraConfig expert_lora(const RootConfig& config, size_t expert);

// Throws Error(kInput) where the list contradicts itself or the groups that it replaces.
void check_experts(const RootConfig& config);
// Throws Error(kInput) where train.flow draws no timestep of one of the experts.
void check_experts_are_trained(const RootConfig& config);

}  // namespace vmoba
