#include "train/checkpoint/checksums.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>

#include "core/check.h"
#include "core/failure.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/parallel.h"
#include "core/work_progress.h"
#include "model/weights/safetensors.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/manifest.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kChunkBytes = 32 << 20;
constexpr int64_t kMaxChecksumsBytes = 256 << 20;
constexpr const char* kSuffix = ".safetensors";

// The header of a safetensors file with its length before it.
std::string header_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string header(sizeof(uint64_t), '\0');
  file.read(header.data(), std::streamsize(header.size()));
  uint64_t length = 0;
  std::memcpy(&length, header.data(), sizeof length);
  header.resize(sizeof length + std::min<uint64_t>(length, fs::file_size(path)));
  file.read(header.data() + sizeof length, std::streamsize(header.size() - sizeof length));
  return header;
}

Checksums read_checksums(const std::string& folder, const std::string& expected_hash) {
  const std::string path = checksums_path(folder);
  const std::string text = read_file(path, kMaxChecksumsBytes, "a checkpoint's checksums");
  VMOBA_CHECK_INPUT(hash_text(content_hash(text)) == expected_hash,
                    "expected the checksums in '{}' that state/trainer.json names, found others", path);
  const json info = parse_json(text, path);
  VMOBA_CHECK_INPUT(info.is_object(), "expected an object of files in '{}', found {}", path, info.type_name());
  return use_json(path, [&] {
    Checksums out;
    for (const auto& [name, file] : info.items()) {
      FileChecksum& checksum = out[name];
      checksum.bytes = file.at("bytes").get<int64_t>();
      checksum.hash = file.at("hash").get<std::string>();
      if (file.contains("tensors")) checksum.tensors = file["tensors"].get<std::map<std::string, std::string>>();
    }
    return out;
  });
}

// A file of tensors that belongs to another step or run says so itself.
std::string stranger(const model::SafetensorsFile& file, const Manifest& manifest) {
  const auto value = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? "" : found->second;
  };
  const std::string step = value("step"), run = value("run");
  if (!step.empty() && step != std::to_string(manifest.state.step))
    return fmt::format("expected a file of step {}, found one of step {}", manifest.state.step, step);
  const std::string own = kind_of_run(manifest.record.run);
  if (!run.empty() && !own.empty() && run != own)
    return fmt::format("expected a file of run {}, found one of run {}", own, run);
  return "";
}

std::string tensor_problem(const model::SafetensorsFile& file, const std::string& name, const std::string& expected,
                           bool finite, WorkProgress& progress) {
  if (!file.contains(name)) return fmt::format("expected the tensor '{}', found none of that name", name);
  const model::TensorInfo& info = file.tensors().at(name);
  const at::Tensor flat = file.tensor(name).reshape(-1);
  const auto width = int64_t(c10::elementSize(info.dtype)), step = kChunkBytes / width;
  uint64_t sum = 0;
  int64_t bad = 0;
  for (int64_t first = 0; first < flat.numel(); first += step) {
    const at::Tensor chunk = flat.narrow(0, first, std::min(step, flat.numel() - first));
    sum += values_checksum(chunk.const_data_ptr(), chunk.numel(), width, first);
    if (finite && at::isFloatingType(info.dtype))
      bad += chunk.numel() - at::isfinite(chunk.to(at::kFloat)).sum().item<int64_t>();
    file.release(name, first * width, (first + chunk.numel()) * width);
    progress.add(chunk.numel() * width);
  }
  if (!expected.empty() && hash_text(sum) != expected)
    return fmt::format("expected the tensor '{}' as it was written, found other bytes", name);
  if (bad > 0) return fmt::format("expected finite values in '{}', found {} that are not", name, bad);
  return "";
}

// A tensor, or a file of another kind.
struct Unit {
  const std::string* file;
  const FileChecksum* checksum;
  const std::string* tensor;    // null: the file as a whole
  const std::string* expected;  // checksum of the tensor
};

class Verifier {
 public:
  Verifier(const std::string& folder, const Manifest& manifest, const Checksums& checksums, bool finite)
      : folder_(folder), manifest_(manifest), checksums_(checksums), finite_(finite) {
    for (const auto& [name, checksum] : checksums_) {
      units_.push_back({&name, &checksum, nullptr, nullptr});
      for (const auto& [tensor, sum] : checksum.tensors) units_.push_back({&name, &checksum, &tensor, &sum});
    }
  }

  std::vector<std::string> run(int64_t part, int64_t parts) {
    std::vector<Unit> own;
    for (size_t i = size_t(part); i < units_.size(); i += size_t(parts)) own.push_back(units_[i]);
    int64_t bytes = 0;
    for (const Unit& unit : own) {
      open(unit);
      bytes += bytes_of(unit);
    }
    progress_.emplace(fmt::format("comparing {} with its checksums", folder_), bytes);
    const int64_t threads = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 8);
    for_each_part(int64_t(own.size()), threads, [&](int64_t i) { check(own[size_t(i)]); });
    progress_.reset();
    std::sort(problems_.begin(), problems_.end());
    return problems_;
  }

 private:
  void open(const Unit& unit) {
    if (unit.checksum->tensors.empty() || files_.contains(*unit.file)) return;
    auto& place = files_[*unit.file];
    // A file that does not open is named by the one whose share it is as a whole.
    failure_of([&] { place.emplace(folder_ + "/" + *unit.file); });
  }

  // Of the values of a tensor.
  int64_t bytes_of(const Unit& unit) const {
    if (unit.tensor == nullptr) return 0;
    const std::optional<model::SafetensorsFile>& file = files_.at(*unit.file);
    if (!file || !file->contains(*unit.tensor)) return 0;
    const model::TensorInfo& info = file->tensors().at(*unit.tensor);
    return info.end - info.begin;
  }

  void check(const Unit& unit) {
    std::string problem;
    const std::string failure =
        failure_of([&] { problem = unit.tensor == nullptr ? file_problem(unit) : tensor_problem_of(unit); });
    if (!failure.empty()) problem = failure;
    if (problem.empty()) return;
    const std::lock_guard lock(mutex_);
    problems_.push_back(fmt::format("{}: {}", *unit.file, problem));
  }

  std::string file_problem(const Unit& unit) const {
    const std::string path = folder_ + "/" + *unit.file;
    if (!fs::exists(path)) return "expected this file, found none";
    const auto bytes = int64_t(fs::file_size(path));
    if (unit.checksum->tensors.empty()) {
      if (bytes == unit.checksum->bytes && hash_text(file_hash(path)) == unit.checksum->hash) return "";
      std::string foreign;
      if (unit.file->ends_with(kSuffix))
        failure_of([&] { foreign = stranger(model::SafetensorsFile(path), manifest_); });
      return foreign.empty() ? "expected the file as it was written, found other bytes" : foreign;
    }
    const model::SafetensorsFile file(path);
    if (const std::string text = stranger(file, manifest_); !text.empty()) return text;
    if (bytes != unit.checksum->bytes) return fmt::format("expected {} bytes, found {}", unit.checksum->bytes, bytes);
    if (hash_text(content_hash(header_of(path))) != unit.checksum->hash)
      return "expected the names, types and shapes that were written, found others";
    return "";
  }

  std::string tensor_problem_of(const Unit& unit) {
    const std::optional<model::SafetensorsFile>& file = files_.at(*unit.file);
    if (!file || !stranger(*file, manifest_).empty()) return "";  // said of the file as a whole
    return tensor_problem(*file, *unit.tensor, *unit.expected, finite_, *progress_);
  }

  const std::string& folder_;
  const Manifest& manifest_;
  const Checksums& checksums_;
  bool finite_;
  std::vector<Unit> units_;
  std::map<std::string, std::optional<model::SafetensorsFile>> files_;
  std::optional<WorkProgress> progress_;
  std::mutex mutex_;
  std::vector<std::string> problems_;
};

// Paths of all files below the folder.
std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) out.push_back(fs::relative(entry.path(), folder).generic_string());
  std::sort(out.begin(), out.end());
  return out;
}

// Files that would be read as weights though nobody wrote them.
std::vector<std::string> added_files(const std::string& folder, const Checksums& checksums) {
  std::vector<std::string> out;
  for (const std::string& file : files_in(folder))
    if (!checksums.contains(file) && (file.ends_with(kSuffix) || file.ends_with(".safetensors.index.json")))
      out.push_back(file + ": expected the files of the checkpoint alone, found this one more");
  return out;
}

// Of a checkpoint without checksums: what its files say themselves.
Checksums unknown_checksums(const std::string& folder) {
  Checksums out;
  for (const std::string& file : files_in(folder)) {
    if (!file.ends_with(kSuffix)) continue;
    FileChecksum& checksum = out[file];
    const model::SafetensorsFile opened(folder + "/" + file);
    checksum.bytes = int64_t(fs::file_size(folder + "/" + file));
    checksum.hash = hash_text(content_hash(header_of(folder + "/" + file)));
    for (const auto& [name, info] : opened.tensors()) checksum.tensors[name] = "";
  }
  return out;
}

std::string size_text(const std::string& folder) {
  double bytes = 0;
  for (const std::string& file : files_in(folder)) bytes += double(fs::file_size(folder + "/" + file));
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6) : fmt::format("{:.1f} GB", bytes / 1e9);
}

void verify_checkpoint(const std::string& folder, Verification& out) {
  const std::vector<std::string> problems = checkpoint_problems(folder, 0, 1, /*finite=*/true);
  if (!problems.empty()) {
    out.sound = false;
    out.text += fmt::format("{}: damaged\n", folder);
    for (const std::string& problem : problems) out.text += fmt::format("  {}\n", problem);
    return;
  }
  const Manifest manifest = read_manifest(folder);
  if (manifest.checksums.empty())
    out.text += fmt::format(
        "{}: step {}, {}; an earlier version wrote it without checksums: all files open and hold "
        "finite values, more cannot be verified\n",
        folder, manifest.state.step, size_text(folder));
  else
    out.text += fmt::format("{}: step {} of run {}, {}: every file is as it was written\n", folder, manifest.state.step,
                            manifest.record.run, size_text(folder));
}

}  // namespace

std::string checksums_path(const std::string& folder) {
  return folder + "/state/checksums.json";
}

std::string checksums_to_json(const Checksums& checksums) {
  json out = json::object();
  for (const auto& [name, checksum] : checksums) {
    out[name] = {{"bytes", checksum.bytes}, {"hash", checksum.hash}};
    if (!checksum.tensors.empty()) out[name]["tensors"] = checksum.tensors;
  }
  return out.dump(1) + "\n";
}

std::vector<std::string> checkpoint_problems(const std::string& folder, int64_t part, int64_t parts, bool finite,
                                             const std::string& below) {
  std::vector<std::string> problems;
  const std::string failure = failure_of([&] {
    const Manifest manifest = read_manifest(folder);
    const bool known = !manifest.checksums.empty();
    if (!known && !finite && part > 0) return;
    Checksums checksums = known ? read_checksums(folder, manifest.checksums) : unknown_checksums(folder);
    if (!known && !finite) return;
    const std::vector<std::string> added = added_files(folder, checksums);
    std::erase_if(checksums, [&](const auto& file) { return !file.first.starts_with(below); });
    problems = Verifier(folder, manifest, checksums, finite).run(part, parts);
    if (part > 0) return;
    for (const std::string& problem : added)
      if (problem.starts_with(below)) problems.push_back(problem);
  });
  if (!failure.empty()) problems.push_back(failure);
  return problems;
}

Verification verify_folder(const std::string& folder) {
  Verification out;
  if (fs::exists(manifest_path(folder))) {
    verify_checkpoint(folder, out);
    return out;
  }
  const std::vector<std::string> names = checkpoint_names(folder);
  VMOBA_CHECK_INPUT(!names.empty(), "--verify: expected a checkpoint or a run's folder at '{}', found neither", folder);
  for (const std::string& name : names) verify_checkpoint((fs::path(folder) / name).string(), out);
  return out;
}

}  // namespace vmoba::train
