#include "train/cache/tensor_cache.h"

#include <ATen/ATen.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "core/check.h"
#include "core/hash.h"
#include "core/log.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormatKey = "vmoba_cache";
constexpr const char* kFormat = "1";
constexpr const char* kExtension = ".safetensors";
constexpr char kSeparator = '|';
constexpr std::chrono::seconds kLongestWait{60};

std::string shard_prefix(int64_t rank) {
  return fmt::format("shard-r{:03d}-", rank);
}

std::string tensor_hash(const at::Tensor& contiguous) {
  const std::string_view bytes(static_cast<const char*>(contiguous.const_data_ptr()), size_t(contiguous.nbytes()));
  return hash_text(content_hash(bytes));
}

// The same values in half the bytes, where that loses nothing.
at::Tensor compacted(const at::Tensor& tensor) {
  const at::Tensor cpu = tensor.detach().to(at::kCPU).contiguous();
  if (cpu.scalar_type() != at::kFloat) return cpu;
  const at::Tensor half = cpu.to(at::kBFloat16);
  return at::equal(half.to(at::kFloat), cpu) ? half : cpu;
}

std::vector<fs::path> shard_paths(const std::string& dir) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error))
    if (entry.path().extension() == kExtension && entry.path().filename().string().starts_with("shard-"))
      paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

// Number behind the prefix of a shard's name; -1 where there is none.
int64_t shard_number(const fs::path& path, const std::string& prefix) {
  const std::string name = path.stem().string();
  int64_t number = -1;
  if (name.starts_with(prefix)) std::from_chars(name.data() + prefix.size(), name.data() + name.size(), number);
  return number;
}

}  // namespace

TensorCache::TensorCache(const std::string& dir) {
  for (const fs::path& path : shard_paths(dir)) {
    try {
      model::SafetensorsFile file(path.string());
      const auto format = file.metadata().find(kFormatKey);
      VMOBA_CHECK_INPUT(format != file.metadata().end() && format->second == kFormat,
                        "expected a shard of vmoba-encode, version {}, found another file", kFormat);
      shards_.push_back({path.string(), std::move(file)});
    } catch (const Error& e) {
      unreadable_.push_back(path.string());
      report_damage(path.string(), e.what());
    }
  }
  for (size_t i = 0; i < shards_.size(); ++i) {
    for (const auto& [name, info] : shards_[i].file.tensors()) {
      std::vector<size_t>& places = shards_of_[name.substr(0, name.rfind(kSeparator))];
      if (places.empty() || places.back() != i) places.push_back(i);
    }
    const std::string failed = std::string("failed") + kSeparator;
    for (const auto& [name, value] : shards_[i].file.metadata())
      if (name.starts_with(failed)) failures_[name.substr(failed.size())] = value;
  }
}

void TensorCache::report_damage(const std::string& path, const std::string& what) const {
  const std::lock_guard lock(mutex_);
  if (reported_.insert(path).second) log_warning("cache: {} is damaged and not used: {}", path, what);
}

std::optional<std::string> TensorCache::failure(const std::string& key) const {
  const auto found = failures_.find(key);
  return found == failures_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<NamedTensors> TensorCache::load_from(const Shard& shard, const std::string& key) const {
  NamedTensors out;
  const std::string prefix = key + kSeparator;
  const auto& tensors = shard.file.tensors();
  for (auto it = tensors.lower_bound(prefix); it != tensors.end() && it->first.starts_with(prefix); ++it) {
    at::Tensor tensor;
    try {
      tensor = shard.file.read(it->first);
    } catch (const Error& e) {
      report_damage(shard.path, e.what());
      return std::nullopt;
    }
    const auto hash = shard.file.metadata().find(std::string("hash") + kSeparator + it->first);
    const std::string expected = hash == shard.file.metadata().end() ? "none" : hash->second;
    if (const std::string found = tensor_hash(tensor); found != expected) {
      report_damage(shard.path, fmt::format("expected checksum {} of '{}', found {}", expected, it->first, found));
      return std::nullopt;
    }
    out[it->first.substr(prefix.size())] = tensor;
  }
  return out;
}

std::optional<NamedTensors> TensorCache::load(const std::string& key) const {
  const auto places = shards_of_.find(key);
  if (places == shards_of_.end()) return std::nullopt;
  for (const size_t place : places->second)
    if (auto tensors = load_from(shards_[place], key)) return tensors;
  return std::nullopt;
}

int64_t TensorCache::prune(const std::set<std::string>& keys) {
  std::set<size_t> kept;
  for (const std::string& key : keys) {
    const auto places = shards_of_.find(key);
    if (places == shards_of_.end()) continue;
    for (const size_t place : places->second) {
      if (!load_from(shards_[place], key)) continue;
      kept.insert(place);
      break;
    }
  }
  std::vector<std::string> gone = unreadable_;
  for (size_t i = 0; i < shards_.size(); ++i)
    if (!kept.contains(i)) gone.push_back(shards_[i].path);
  int64_t bytes = 0;
  for (const std::string& path : gone) {
    bytes += int64_t(fs::file_size(path));
    fs::remove(path);
  }
  return bytes;
}

TensorCacheWriter::TensorCacheWriter(const std::string& dir, int64_t rank, int64_t shard_bytes)
    : dir_(dir), rank_(rank), shard_bytes_(shard_bytes), last_flush_(std::chrono::steady_clock::now()) {
  std::error_code error;
  fs::create_directories(dir, error);
  VMOBA_CHECK(!error, "cache.dir: expected to make '{}', found: {}", dir, error.message());
  const std::string lock_path = fmt::format("{}/.writer-r{:03d}.lock", dir, rank);
  lock_.emplace(lock_path, O_RDWR | O_CREAT);
  VMOBA_CHECK(lock_->get() >= 0, "cache.dir: expected to write in '{}', found: {}", dir, std::strerror(errno));
  if (::flock(lock_->get(), LOCK_EX | LOCK_NB) != 0) {
    throw_runtime(
        "cache.dir: expected to be the only writer number {} of '{}', found another process; wait for it, or "
        "give each its own --rank",
        rank, dir);
  }
  const std::string prefix = shard_prefix(rank);
  for (const fs::path& path : shard_paths(dir)) next_number_ = std::max(next_number_, shard_number(path, prefix) + 1);
  for (const auto& entry : fs::directory_iterator(dir))
    if (entry.path().extension() == ".tmp" && entry.path().filename().string().starts_with(prefix))
      fs::remove(entry.path());
}

void TensorCacheWriter::put(const std::string& key, const NamedTensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    const std::string stored = key + kSeparator + name;
    pending_.push_back({stored, compacted(tensor)});
    pending_bytes_ += int64_t(pending_.back().tensor.nbytes());
    metadata_[std::string("hash") + kSeparator + stored] = tensor_hash(pending_.back().tensor);
  }
  flush_if_due();
}

void TensorCacheWriter::put_failure(const std::string& key, const std::string& reason) {
  metadata_[std::string("failed") + kSeparator + key] = reason;
  flush_if_due();
}

void TensorCacheWriter::flush_if_due() {
  if (pending_bytes_ >= shard_bytes_ || std::chrono::steady_clock::now() - last_flush_ >= kLongestWait) flush();
}

void TensorCacheWriter::flush() {
  last_flush_ = std::chrono::steady_clock::now();
  if (metadata_.empty()) return;
  metadata_.emplace(kFormatKey, kFormat);
  const std::string path = fmt::format("{}/{}{:06d}{}", dir_, shard_prefix(rank_), next_number_, kExtension);
  model::write_safetensors(path, pending_, metadata_);
  next_number_ += 1;
  written_bytes_ += pending_bytes_;
  pending_bytes_ = 0;
  pending_.clear();
  metadata_.clear();
}

}  // namespace vmoba::train
