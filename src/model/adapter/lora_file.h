// LoRA files as the tools write them, read and written; the names are the architecture's. For Wan:
//   ComfyUI, diffusion-pipe   diffusion_model.blocks.0.self_attn.q.lora_A.weight
//   diffusers, finetrainers   transformer.blocks.0.attn1.to_q.lora_A.weight
//   kohya, musubi-tuner       lora_unet_blocks_0_self_attn_q.lora_down.weight, .lora_up.weight, .alpha
//   read only                 peft's base_model.model., DiffSynth's lora_A.default.weight without a prefix, VideoX-Fun
#pragma once
#include <map>
#include <string>
#include <vector>

#include "model/architecture.h"
#include "model/dit.h"

namespace vmoba::model {

enum class LoraFormat { kComfyUi, kDiffusers, kKohya };

LoraFormat lora_format(const std::string& name);  // comfyui | diffusers | kohya; Error(kInput) for another
const std::vector<std::string>& lora_format_names();

// Whether `path` is a LoRA file or a folder with one, by its names.
bool is_lora(const std::string& path);

// The architecture that knows the most modules of the LoRA file or folder `path`.
const Architecture& architecture_of_lora(const std::string& path);

// fp32 adapters on `device`, by module in diffusers' layout. `path`: a file, or a folder with one. The scale is alpha /
// rank; alpha comes from .alpha tensors, the file's lora_adapter_metadata, an adapter_config.json beside it, or is the
// rank. Throws Error(kInput) naming keys that belong to no such adapter (LoHa, LoKr, DoRA, difference weights, biases).
std::vector<Adapter> read_lora(const std::string& path, const Architecture& architecture, at::Device device);

// Writes and checks the file (save.h). ComfyUI's and diffusers' files have no alpha: the scale goes into B, so that
// every reader gives the same; kohya's carry it. `metadata` joins the file's own.
void write_lora(const std::string& path, const std::vector<Adapter>& adapters, const Architecture& architecture,
                LoraFormat format, at::ScalarType dtype, std::map<std::string, std::string> metadata = {});

// Modules that kohya's format needs in every block that has an adapter (LoraNames::kohya_modules) and lacks: diffusers
// refuses such a file. Empty: complete.
std::vector<std::string> missing_for_kohya(const std::vector<Adapter>& adapters, const Architecture& architecture);

}  // namespace vmoba::model
