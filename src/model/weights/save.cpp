#include "model/weights/save.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>

#include "core/check.h"
#include "core/file.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStem = "diffusion_pytorch_model";
constexpr const char* kUnfinished = ".unfinished";  // folder of new files until all are whole

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

bool is_weights_name(const std::string& name) {
  static const std::regex names(std::string(kStem) + R"((-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?)");
  return std::regex_match(name, names);
}

// Puts the files of `made` in the place of the weights of an earlier save in `folder`: a stale index would be read
// before a new single file, and stale shards are confusing. An index, which says what is read, comes last and goes
// first.
void replace_weights(const fs::path& made, const fs::path& folder) {
  std::vector<fs::path> fresh, stale;
  for (const auto& entry : fs::directory_iterator(made)) fresh.push_back(entry.path().filename());
  std::stable_partition(fresh.begin(), fresh.end(), [](const fs::path& name) { return name != kTransformerIndex; });
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path name = entry.path().filename();
    const bool kept = std::find(fresh.begin(), fresh.end(), name) != fresh.end();
    if (is_weights_name(name.string()) && !kept) stale.push_back(entry.path());
  }
  std::stable_partition(stale.begin(), stale.end(),
                        [](const fs::path& path) { return path.filename() == kTransformerIndex; });
  for (const fs::path& name : fresh) fs::rename(made / name, folder / name);
  for (const fs::path& path : stale) fs::remove(path);
  fs::remove(made);
  sync_path(folder.string());
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
  const fs::path made = fs::path(folder) / kUnfinished;
  std::error_code error;
  fs::remove_all(made, error);  // of an interrupted save
  fs::create_directories(made, error);
  VMOBA_CHECK(!error && fs::is_directory(made), "expected to make the folder '{}', found: {}", made.string(),
              error ? error.message() : "a file of that name");
  try {
    write_file_atomically((made / "config.json").string(), config_json);
    const TransformerPlan plan = plan_transformer(tensors, shard_bytes);
    for (const TransformerPlan::File& file : plan.files)
      save_tensors((made / file.name).string(), file.tensors, kTransformerMetadata);
    if (!plan.index.empty()) write_file_atomically((made / kTransformerIndex).string(), plan.index);
    replace_weights(made, folder);
  } catch (const fs::filesystem_error& e) {
    throw_runtime("expected to put the new files into '{}', found: {}; they are whole in '{}'", folder,
                  e.code().message(), made.string());
  } catch (...) {
    fs::remove_all(made, error);
    throw;
  }
}

}  // namespace vmoba::model
