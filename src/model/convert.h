// Files of one layout into files of another (vmoba-convert): whole transformers, LoRA files, and a LoRA merged into a
// transformer. One tensor is in memory at a time.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/weights/save.h"

namespace vmoba::model {

struct ConvertOptions {
  std::string in, out;
  std::string layout;          // diffusers | original | comfyui; kohya for LoRA files
  std::string dtype = "keep";  // keep (fp8 becomes bf16) | fp32 | bf16 | fp16
  int64_t shard_bytes = kShardBytes;
  int64_t head_dim = 0;            // 0: config.json's, else the published one of the architecture
  std::string architecture;        // of a LoRA file; empty: the one whose names it has
  std::vector<std::string> loras;  // to merge into a transformer
  double lora_strength = 1;
};

// `in`: anything that WeightFiles or read_lora takes, "N:FILE" for a LoRA file of two transformers. `out`: a
// safetensors file, or, for a transformer in diffusers' or the original layout, a folder. Returns what was written, in
// words. Throws Error(kInput) naming what does not fit.
std::string convert_weights(const ConvertOptions& options);

}  // namespace vmoba::model
