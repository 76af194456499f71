// Weights out: tensors streamed to safetensors files one at a time, in shards where they are large, and read back for a
// check of names, shapes and bytes.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/weights/safetensors.h"

namespace vmoba::model {

// diffusers' and Hugging Face's default limit of a shard.
constexpr int64_t kShardBytes = 10'000'000'000;

// One safetensors file: written under a temporary name, synced, renamed, then opened again and compared with what was
// written (names, types, shapes, a checksum of every tensor's bytes). Holds one tensor at a time. Throws
// Error(kRuntime).
void save_tensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                  const std::map<std::string, std::string>& metadata);

// Files of a transformer's folder beside config.json.
struct TransformerPlan {
  struct File {
    std::string name;
    std::vector<TensorToWrite> tensors;
  };
  std::vector<File> files;  // tensors in the given order
  std::string index;        // text of the file kTransformerIndex; "" where there is one file, which needs none
};
inline constexpr const char* kTransformerIndex = "diffusion_pytorch_model.safetensors.index.json";
inline const std::map<std::string, std::string> kTransformerMetadata = {{"format", "pt"}};
TransformerPlan plan_transformer(const std::vector<TensorToWrite>& tensors, int64_t shard_bytes = kShardBytes);

// A transformer's folder: config.json and diffusion_pytorch_model.safetensors, or, where the tensors exceed
// `shard_bytes`, diffusion_pytorch_model-00001-of-0000N.safetensors with an index. The folder is made where it is
// missing. What it holds stays until all new files are whole: they are made in `<folder>/.unfinished`, then take the
// place of an earlier save's, whose other files are removed.
void save_transformer(const std::string& folder, const std::string& config_json,
                      const std::vector<TensorToWrite>& tensors, int64_t shard_bytes = kShardBytes);

}  // namespace vmoba::model
