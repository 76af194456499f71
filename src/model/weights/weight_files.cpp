#include "model/weights/weight_files.h"

#include <ATen/ops/empty.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>
#include <set>

#include "core/check.h"
#include "core/file_kind.h"
#include "core/json.h"
#include "model/common/linear.h"
#include "model/common/packed.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kStems[] = {"diffusion_pytorch_model", "model"};
constexpr const char* kIndexSuffix = ".safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 64 << 20;

// Beside the weights of quantised files. The scale of x.weight is x.scale_weight (ComfyUI's and musubi-tuner's
// fp8_scaled) or x.weight_scale (ComfyUI's later files); the rest describes how activations may be quantised.
constexpr const char* kScaleSuffixes[] = {"scale_weight", "weight_scale"};
constexpr const char* kIgnoredSuffixes[] = {".scale_input", ".input_scale", ".comfy_quant"};
constexpr const char* kFp8Marker = "scaled_fp8";

// Other models of ComfyUI's all-in-one checkpoints, in which a prefix says what belongs to the transformer.
constexpr const char* kOtherModels[] = {"first_stage_model.", "vae.",         "text_encoders.",
                                        "cond_stage_model.",  "clip_vision.", "conditioner."};

// Names of tensors to names of files.
std::map<std::string, std::string> weight_map(const fs::path& index) {
  const json parsed = read_json(index.string(), kMaxIndexBytes, "an index of weight files");
  VMOBA_CHECK_INPUT(parsed.is_object(), "expected an index of weight files at '{}' to be a JSON object, found {}",
                    index.string(), parsed.type_name());
  const auto map = parsed.find("weight_map");
  VMOBA_CHECK_INPUT(map != parsed.end() && map->is_object() && !map->empty(),
                    "expected a 'weight_map' of names to files in '{}', found none", index.string());
  std::map<std::string, std::string> out;
  for (const auto& [name, file] : map->items()) {
    VMOBA_CHECK_INPUT(file.is_string() && fs::path(file.get<std::string>()).filename() == file.get<std::string>(),
                      "expected a file name for '{}' in '{}', found {}", name, index.string(), json_text(file));
    out[name] = file.get<std::string>();
  }
  return out;
}

std::vector<std::string> shards_of(const fs::path& index) {
  std::set<std::string> names, missing;
  for (const auto& [name, file] : weight_map(index)) names.insert(file);
  std::vector<std::string> files;
  for (const std::string& name : names) {
    files.push_back((index.parent_path() / name).string());
    std::error_code error;  // of a name that is too long
    if (!fs::exists(files.back(), error)) missing.insert(name);
  }
  VMOBA_CHECK_INPUT(missing.empty(), "expected the {} files that '{}' names, found {} missing: {}; get them as well",
                    names.size(), index.string(), missing.size(), fmt::join(missing, ", "));
  return files;
}

// The index that `path` means; "" where none is there.
std::string index_of(const std::string& path) {
  if (!fs::is_directory(path)) return path.ends_with(".json") ? path : "";
  for (const fs::path& folder : {fs::path(path), fs::path(path) / "transformer"}) {
    for (const std::string stem : kStems) {
      if (fs::exists(folder / (stem + kIndexSuffix))) return (folder / (stem + kIndexSuffix)).string();
      if (fs::exists(folder / (stem + ".safetensors"))) return "";
    }
  }
  return "";
}

// An index and its files say the same, or one of them is of another model or of half a download.
void check_index(const std::string& index, const std::vector<std::string>& paths,
                 const std::vector<std::unique_ptr<TensorFile>>& files) {
  std::map<std::string, std::string> stated = weight_map(index);
  std::vector<std::string> wrong;
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string file = fs::path(paths[i]).filename().string();
    for (const auto& [name, info] : files[i]->tensors()) {
      const auto found = stated.find(name);
      if (found == stated.end() || found->second != file)
        wrong.push_back(fmt::format("'{}' is in {}, which the index does not say", name, file));
      else
        stated.erase(found);
    }
  }
  for (const auto& [name, file] : stated) wrong.push_back(fmt::format("'{}' is not in {}", name, file));
  VMOBA_CHECK_INPUT(wrong.empty(),
                    "expected '{}' to name the tensors of its {} files, found {} differences ({}{}); get "
                    "the index and the files of one model again",
                    index, files.size(), wrong.size(), wrong.front(), wrong.size() > 1 ? ", ..." : "");
}

// "model-00002-of-00007.safetensors" alone is no model.
void check_no_shard(const std::string& path) {
  static const std::regex shard("-([0-9]+)-of-([0-9]+)\\.safetensors$");
  std::smatch match;
  VMOBA_CHECK_INPUT(!std::regex_search(path, match, shard) ||
                        match[2].str().find_first_not_of('0') == std::string::npos || std::stol(match[2].str()) == 1,
                    "expected a whole model, found '{}', file {} of {}; get the others and the index ({}), and name "
                    "their folder",
                    path, match[1].str(), match[2].str(), std::string("*") + kIndexSuffix);
}

// Files that other tools would take for weights.
std::string others_in(const std::string& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string kind = entry.path().extension().string();
    if (kind == ".bin" || kind == ".pth" || kind == ".pt" || kind == ".ckpt" || kind == ".gguf")
      return fmt::format(", only '{}', {}", entry.path().filename().string(), what_is_this(entry.path().string()));
  }
  return "";
}

std::vector<std::string> safetensors_in(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

template <size_t kCount>
bool starts_with_any(const std::string& name, const char* const (&prefixes)[kCount]) {
  return std::any_of(std::begin(prefixes), std::end(prefixes), [&](const char* p) { return name.starts_with(p); });
}

template <size_t kCount>
bool ends_with_any(const std::string& name, const char* const (&suffixes)[kCount]) {
  return std::any_of(std::begin(suffixes), std::end(suffixes), [&](const char* s) { return name.ends_with(s); });
}

// Copies values [first, first + out.numel()) of a mapped tensor piece by piece, giving pages back on the way.
void copy_mapped(const TensorFile& file, const std::string& stored_name, int64_t first, const at::Tensor& out,
                 WorkProgress& progress) {
  constexpr int64_t kPieceValues = 4 << 20;
  const at::Tensor mapped = file.tensor(stored_name).view(-1), flat = out.view(-1);
  const int64_t value_bytes = int64_t(mapped.element_size());
  for (int64_t at = 0; at < flat.numel(); at += kPieceValues) {
    const int64_t count = std::min(kPieceValues, flat.numel() - at), begin = first + at;
    flat.narrow(0, at, count).copy_(mapped.narrow(0, begin, count));
    file.release(stored_name, begin * value_bytes, (begin + count) * value_bytes);
    progress.add(count * value_bytes);
  }
}

// The parameter in the type and on the device of `options`.
at::Tensor copy_of(const TensorFile& file, const WeightFiles::Entry& entry, const at::TensorOptions& options,
                   WorkProgress& progress) {
  const at::Tensor out = at::empty(entry.info.shape, options);
  if (entry.rows.empty()) {
    copy_mapped(file, entry.stored_name, 0, out, progress);
    return out;
  }
  int64_t done = 0;
  for (const RowRun& run : entry.rows) {
    const at::Tensor part = out.narrow(0, done, run.count);
    copy_mapped(file, entry.stored_name, run.count == 0 ? 0 : run.first * (part.numel() / run.count), part, progress);
    done += run.count;
  }
  return out;
}

at::Tensor own_rows(const at::Tensor& stored, const WeightFiles::Entry& entry) {
  return entry.rows.empty() ? stored : take_rows(stored, entry.rows);
}

}  // namespace

std::vector<std::string> find_weight_files(const std::string& path) {
  VMOBA_CHECK_INPUT(fs::exists(path), "expected pretrained weights at '{}', found {}", path, what_is_this(path));
  if (path.ends_with(".json") && !fs::is_directory(path)) return shards_of(path);
  if (!fs::is_directory(path)) {
    check_no_shard(path);
    return {path};
  }
  if (const std::string index = index_of(path); !index.empty()) return shards_of(index);
  const std::vector<fs::path> folders = {fs::path(path), fs::path(path) / "transformer"};
  for (const fs::path& folder : folders) {
    for (const std::string stem : kStems) {
      if (fs::exists(folder / (stem + ".safetensors"))) return {(folder / (stem + ".safetensors")).string()};
    }
  }
  for (const fs::path& folder : folders) {
    const std::vector<std::string> files = safetensors_in(folder);
    VMOBA_CHECK_INPUT(files.size() <= 1,
                      "expected one transformer in '{}', found {} files without an index; name the file to use",
                      folder.string(), files.size());
    if (files.size() != 1) continue;
    check_no_shard(files.front());
    return files;
  }
  throw_input(
      "expected {0}.safetensors, {0}{1} or a single safetensors file in '{2}' or its transformer/ folder, found "
      "neither{3}",
      kStems[0], kIndexSuffix, path, others_in(path));
}

std::vector<std::string> stored_names(const std::string& path) {
  std::vector<std::string> names;
  for (const std::string& file : find_weight_files(path)) {
    const std::unique_ptr<TensorFile> opened = open_tensor_file(file);
    for (const auto& [name, info] : opened->tensors()) names.push_back(name);
  }
  return names;
}

bool are_lora_names(const std::vector<std::string>& names) {
  constexpr const char* kMarks[] = {".lora_", ".lora.", ".lokr_", ".hada_", ".dora_scale"};
  constexpr const char* kPrefixes[] = {"lora_unet_", "lora_transformer_", "lycoris_"};
  constexpr const char* kDifferences[] = {".diff", ".diff_b"};
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    const auto within = [&](const char* mark) { return name.find(mark) != std::string::npos; };
    return std::any_of(std::begin(kMarks), std::end(kMarks), within) || starts_with_any(name, kPrefixes) ||
           ends_with_any(name, kDifferences);
  });
}

namespace {

// Programs that load files in parts leave theirs beside them until the end; the file has its whole size before.
void check_downloaded(const std::string& file) {
  for (const char* ending : {".aria2", ".part", ".st", ".crdownload", ".incomplete"})
    VMOBA_CHECK_INPUT(!fs::exists(file + ending),
                      "expected a whole file of weights at '{}', found '{}{}' beside it: its download did not finish; "
                      "let it, or remove that file where it did",
                      file, file, ending);
}

}  // namespace

WeightFiles::WeightFiles(const std::string& path, const std::vector<Layout>& layouts) {
  const std::vector<std::string> paths = find_weight_files(path);
  for (const std::string& file : paths) check_downloaded(file);
  folder_ = fs::path(paths.front()).parent_path().string();
  std::vector<std::string> names;
  for (const std::string& file : paths) {
    files_.push_back(open_tensor_file(file));
    for (const auto& [name, info] : files_.back()->tensors()) names.push_back(name);
  }
  VMOBA_CHECK_INPUT(!are_lora_names(names),
                    "expected the weights of a whole transformer at '{}', found the LoRA layout; LoRA files belong in "
                    "lora.init_from, --lora or vmoba-convert",
                    path);
  if (const Layout* found = find_layout(layouts, names))
    layout_ = *found;
  else if (!layouts.empty())
    layout_ = layouts.front();
  for (size_t i = 0; i < files_.size(); ++i) add_file(i, path);
  if (const std::string index = index_of(path); !index.empty()) check_index(index, paths, files_);
  find_scales();
  find_rows();
}

void WeightFiles::add_file(size_t number, const std::string& path) {
  for (const auto& [stored, info] : files_[number]->tensors()) {
    if (!layout_.prefixes.empty() && starts_with_any(stored, kOtherModels)) continue;
    const std::string name = layout_.without_prefix(stored);
    if (name == kFp8Marker || ends_with_any(name, kIgnoredSuffixes)) continue;
    std::vector<std::string> held = layout_.to_diffusers(stored);
    if (held.empty()) held = {stored};
    for (const std::string& parameter : held)
      VMOBA_CHECK_INPUT(entries_.emplace(parameter, Entry{number, stored, "", {}, info}).second,
                        "expected each tensor once in the files of '{}', found '{}' twice", path, stored);
  }
}

void WeightFiles::find_scales() {
  for (auto& [name, entry] : entries_) {
    if (!name.ends_with(".weight")) continue;
    const std::string module = name.substr(0, name.size() - std::string("weight").size());
    for (const char* suffix : kScaleSuffixes) {
      const auto scale = entries_.find(module + suffix);
      if (scale == entries_.end()) continue;
      const TensorInfo& weight_info = stored_info(entry);
      const std::vector<int64_t>& shape = stored_info(scale->second).shape;
      int64_t values = 1;
      for (const int64_t size : shape) values *= size;
      const int64_t rows = weight_info.shape.empty() ? 1 : weight_info.shape[0];
      const bool fits = values == 1 || (rows > 0 && weight_info.shape.size() == 2 && values % rows == 0 && values > 0 &&
                                        weight_info.shape[1] % (values / rows) == 0);
      VMOBA_CHECK_INPUT(fits && entry.file == scale->second.file,
                        "expected one scale, one for each row or one for each run of columns of '{}' ({}), found '{}' "
                        "of shape {}",
                        entry.stored_name, fmt::join(weight_info.shape, "x"), scale->second.stored_name,
                        fmt::join(shape, "x"));
      entry.scale_name = scale->second.stored_name;
      entries_.erase(scale);
      break;
    }
  }
}

void WeightFiles::find_rows() {
  // Of the matrix among the tensors of a module, which its parts are cut by; 0 without.
  const auto columns_of = [&](const std::string& stored) -> int64_t {
    const std::string weight = stored.substr(0, stored.rfind('.') + 1) + "weight";
    for (const auto& file : files_) {
      const auto found = file->tensors().find(weight);
      if (found != file->tensors().end() && found->second.shape.size() == 2) return found->second.shape[1];
    }
    return 0;
  };
  for (auto& [name, entry] : entries_) {
    const std::optional<StoredPlace> place = layout_.place_of(name);
    if (!place || place->rows == Rows::kAll || entry.info.shape.empty()) continue;
    entry.rows = row_runs(*place, entry.info.shape[0], columns_of(entry.stored_name));
    if (entry.rows.empty()) continue;
    entry.info.shape[0] = 0;
    for (const RowRun& run : entry.rows) entry.info.shape[0] += run.count;
  }
}

WorkProgress& WeightFiles::progress() const {
  if (!progress_) {
    int64_t bytes = 0;
    for (const auto& [name, entry] : entries_) {
      const std::vector<int64_t>& shape = entry.info.shape;
      const int64_t values = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
      bytes += entry.info.packing ? values / shape.back() * packed_row_bytes(*entry.info.packing, shape.back())
                                  : values * int64_t(c10::elementSize(entry.info.dtype));
    }
    progress_ = std::make_unique<WorkProgress>(fmt::format("loading weights from {}", folder_), bytes);
  }
  return *progress_;
}

at::Tensor WeightFiles::scale_of(const Entry& entry) const {
  const at::Tensor scale = files_[entry.file]->tensor(entry.scale_name);
  if (entry.rows.empty() || scale.numel() == 1) return scale;
  return own_rows(scale.view({stored_info(entry).shape[0], -1}), entry);
}

at::Tensor WeightFiles::read(const std::string& name, at::ScalarType dtype, at::Device device) const {
  const Entry& entry = entries_.at(name);
  const TensorFile& file = *files_[entry.file];
  if (entry.info.packing) {
    const Stored stored = read_stored(name, device);
    return unpacked(stored.tensor, *stored.packing, dtype);
  }
  if (entry.scale_name.empty()) return copy_of(file, entry, at::TensorOptions(device).dtype(dtype), progress());
  const at::Tensor own = own_rows(file.tensor(entry.stored_name), entry);
  const at::Tensor out = scaled_weight(own, scale_of(entry), dtype).to(device);
  file.release(entry.stored_name);
  progress().add(int64_t(own.nbytes()));
  return out;
}

WeightFiles::Stored WeightFiles::read_stored(const std::string& name, at::Device device) const {
  const Entry& entry = entries_.at(name);
  const TensorFile& file = *files_[entry.file];
  Stored out;
  if (entry.info.packing) {
    out.tensor = own_rows(file.tensor(entry.stored_name), entry).to(device, at::kByte, false, /*copy=*/true);
    out.packing = entry.info.packing;
    file.release(entry.stored_name);
    progress().add(int64_t(out.tensor.nbytes()));
    return out;
  }
  out.tensor = copy_of(file, entry, at::TensorOptions(device).dtype(entry.info.dtype), progress());
  if (!entry.scale_name.empty()) out.scale = scale_of(entry).to(at::kFloat).clone().to(device);
  return out;
}

}  // namespace vmoba::model
