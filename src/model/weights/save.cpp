#include "model/weights/save.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/file.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStem = "diffusion_pytorch_model";

void check_saved(const std::string& path, const std::vector<TensorToWrite>& tensors,
                 const std::map<std::string, uint64_t>& checksums) {
  const SafetensorsFile file(path);
  VMOBA_CHECK(file.tensors().size() == tensors.size(), "expected {} tensors in '{}' after saving, found {}",
              tensors.size(), path, file.tensors().size());
  for (const TensorToWrite& source : tensors) {
    VMOBA_CHECK(file.contains(source.name), "expected '{}' in '{}' after saving, found no such tensor", source.name,
                path);
    const at::Tensor saved = file.tensor(source.name);
    VMOBA_CHECK(saved.scalar_type() == source.dtype && saved.sizes() == at::IntArrayRef(source.shape) &&
                    bytes_checksum(saved.const_data_ptr(), saved.nbytes()) == checksums.at(source.name),
                "expected '{}' in '{}' to read back as it was written, found other bytes; check the disk", source.name,
                path);
    file.release(source.name);
  }
}

// Tensors in their order, each shard as large as the limit allows.
std::vector<std::vector<TensorToWrite>> shards_of(const std::vector<TensorToWrite>& tensors, int64_t shard_bytes) {
  std::vector<std::vector<TensorToWrite>> shards(1);
  int64_t filled = 0;
  for (const TensorToWrite& source : tensors) {
    if (!shards.back().empty() && filled + source.bytes() > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(source);
    filled += source.bytes();
  }
  return shards;
}

// Weights of an earlier save: a stale index would be read before a new single file, and stale shards are confusing.
void remove_earlier(const fs::path& folder) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kStem) && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")))
      found.push_back(entry.path());
  }
  for (const fs::path& path : found) fs::remove(path);
}

}  // namespace

TransformerPlan plan_transformer(const std::vector<TensorToWrite>& tensors, int64_t shard_bytes) {
  const auto shards = shards_of(tensors, shard_bytes);
  if (shards.size() == 1) return {{{fmt::format("{}.safetensors", kStem), tensors}}, ""};
  TransformerPlan plan;
  nlohmann::json map = nlohmann::json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    plan.files.push_back({fmt::format("{}-{:05d}-of-{:05d}.safetensors", kStem, i + 1, shards.size()), shards[i]});
    for (const TensorToWrite& source : shards[i]) {
      map[source.name] = plan.files.back().name;
      total += source.bytes();
    }
  }
  plan.index = nlohmann::json({{"metadata", {{"total_size", total}}}, {"weight_map", map}}).dump(2) + "\n";
  return plan;
}

void save_tensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                  const std::map<std::string, std::string>& metadata) {
  check_saved(path, tensors, write_safetensors(path, tensors, metadata));
}

void save_transformer(const std::string& folder, const std::string& config_json,
                      const std::vector<TensorToWrite>& tensors, int64_t shard_bytes) {
  std::error_code error;
  fs::create_directories(folder, error);
  VMOBA_CHECK(!error && fs::is_directory(folder), "expected to make the folder '{}', found: {}", folder,
              error ? error.message() : "a file of that name");
  remove_earlier(folder);
  write_file_atomically(folder + "/config.json", config_json);
  const TransformerPlan plan = plan_transformer(tensors, shard_bytes);
  for (const TransformerPlan::File& file : plan.files)
    save_tensors(folder + "/" + file.name, file.tensors, kTransformerMetadata);
  if (!plan.index.empty()) write_file_atomically(folder + "/" + kTransformerIndex, plan.index);
  sync_path(folder);
}

}  // namespace vmoba::model
