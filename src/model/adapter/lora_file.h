// LoRA files as the tools write them, read and written; the names are the architecture's. For Wan:
//   ComfyUI, diffusion-pipe   diffusion_model.blocks.0.self_attn.q.lora_A.weight
//   diffusers, finetrainers   transformer.blocks.0.attn1.to_q.lora_A.weight
//   kohya, musubi-tuner       lora_unet_blocks_0_self_attn_q.lora_down.weight, .lora_up.weight, .alpha
//   read only                 peft's base_model.model., DiffSynth's lora_A.default.weight without a prefix or behind
//                             pipe.dit., VideoX-Fun, lora_transformer_; DoRA, .diff, .diff_b, a bias of B
#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model/adapter/weight_change.h"
#include "model/architecture.h"
#include "model/dit.h"

namespace vmoba::model {

enum class LoraFormat { kComfyUi, kDiffusers, kKohya };

LoraFormat lora_format(const std::string& name);  // comfyui | diffusers | kohya; Error(kInput) for another
const std::vector<std::string>& lora_format_names();

// Whether `path` is a LoRA file or a folder with one, by its names.
bool is_lora(const std::string& path);

// The architecture `name`, or where it is empty the one that knows the most modules of the LoRA file or folder `path`.
// Throws Error(kInput) where several know as many.
const Architecture& architecture_of_lora(const std::string& path, const std::string& name = "");

// A LoRA file, or a folder with one, as users name it.
struct LoraSource {
  LoraSource(std::string path, std::optional<size_t> expert = std::nullopt) : path(std::move(path)), expert(expert) {}
  std::string path;
  std::optional<size_t> expert;  // whose tensors are read where the file has those of two transformers
};
// "FILE" or "N:FILE", N counting from 1.
LoraSource lora_source(const std::string& text);

// The transformers that the file names: none, where it has no tensor of the second one ("transformer_2.").
std::set<size_t> named_transformers(const std::string& path, const Architecture& architecture);

// All that the file changes, fp32 on `device`, by module in diffusers' layout. The scale is alpha / rank. Alpha comes
// from .alpha tensors, else from the file's lora_adapter_metadata or, for adapter_model.safetensors, from the
// adapter_config.json beside it (peft_settings.h); else it is the rank. Throws Error(kInput) naming tensors that belong
// to no such change (LoHa, LoKr), settings that are not understood, and a file of two transformers without a choice.
std::vector<ModuleChange> read_changes(const LoraSource& source, const Architecture& architecture, at::Device device);

// The same of a file with low-rank matrices alone, which can be trained; refuses all else by name.
std::vector<Adapter> read_lora(const LoraSource& source, const Architecture& architecture, at::Device device);

// Writes and checks the file (save.h). ComfyUI's and diffusers' files have no alpha: the scale goes into B, so that
// every reader gives the same; kohya's carry it. `metadata` joins the file's own. Where a format has several maps as
// one (fused_maps.h), `shape_of` tells the sizes of those without an adapter.
void write_lora(const std::string& path, const std::vector<Adapter>& adapters, const Architecture& architecture,
                LoraFormat format, at::ScalarType dtype, std::map<std::string, std::string> metadata = {},
                const ShapeOf& shape_of = {});

// Modules that kohya's format needs in every block that has an adapter (LoraNames::kohya_modules) and lacks: diffusers
// refuses such a file. Empty: complete.
std::vector<std::string> missing_for_kohya(const std::vector<Adapter>& adapters, const Architecture& architecture);

// The part of a name without which diffusers takes a file of ComfyUI's format for another (LoraNames::comfyui_mark),
// where no adapter has it; empty: it reads the file, or would not read one at all.
std::string missing_for_diffusers(const std::vector<Adapter>& adapters, const Architecture& architecture);

}  // namespace vmoba::model
