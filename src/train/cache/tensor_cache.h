// Named tensors by key on disk: safetensors shards that are written whole or not at all, with a checksum for each
// tensor, so that a killed writer loses at most its unwritten shard and damage is found before it is used.
//
// A tensor `name` of `key` is stored as "key|name". The file's metadata holds "hash|key|name" (XXH64 of the bytes) and,
// for what could not be made, "failed|key" with the reason. Several writers may fill one folder, each under a number of
// its own; where shards repeat a key, any undamaged one counts.
#pragma once
#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/file_descriptor.h"
#include "model/weights/safetensors.h"

namespace vmoba::train {

using NamedTensors = std::map<std::string, at::Tensor>;

class TensorCache {
 public:
  // Reads the headers of all shards in `dir`; a folder that does not exist is an empty cache. Files that cannot be read
  // are reported and left out.
  explicit TensorCache(const std::string& dir);

  bool has(const std::string& key) const { return shards_of_.contains(key); }
  // Why there is nothing under `key`, where a writer noted that.
  std::optional<std::string> failure(const std::string& key) const;
  // New CPU tensors; nothing where the key is missing or all its copies are damaged (reported once for each shard).
  // Safe to call from several threads.
  std::optional<NamedTensors> load(const std::string& key) const;
  // As load, without keeping the tensors.
  bool is_sound(const std::string& key) const { return load(key).has_value(); }

  // Removes shards that hold no undamaged entry of `keys`, and unreadable ones. Returns the bytes freed.
  int64_t prune(const std::set<std::string>& keys);

 private:
  struct Shard {
    std::string path;
    model::SafetensorsFile file;
  };
  std::optional<NamedTensors> load_from(const Shard& shard, const std::string& key) const;
  void report_damage(const std::string& path, const std::string& what) const;

  std::vector<Shard> shards_;
  std::vector<std::string> unreadable_;
  std::map<std::string, std::vector<size_t>> shards_of_;
  std::map<std::string, std::string> failures_;
  mutable std::mutex mutex_;
  mutable std::set<std::string> reported_;
};

class TensorCacheWriter {
 public:
  // Makes the folder. `rank` numbers the writers of one folder; Error(kRuntime) where another process writes under the
  // same number. Left-overs of an earlier one are removed.
  TensorCacheWriter(const std::string& dir, int64_t rank, int64_t shard_bytes);
  TensorCacheWriter(const TensorCacheWriter&) = delete;
  TensorCacheWriter& operator=(const TensorCacheWriter&) = delete;

  // fp32 tensors whose values bf16 holds exactly are stored as bf16. A full shard, or one that has waited for a minute,
  // is written at once.
  void put(const std::string& key, const NamedTensors& tensors);
  void put_failure(const std::string& key, const std::string& reason);
  void flush();
  int64_t written_bytes() const { return written_bytes_; }

 private:
  void flush_if_due();

  std::string dir_;
  int64_t rank_, shard_bytes_, next_number_ = 0, pending_bytes_ = 0, written_bytes_ = 0;
  std::optional<FileDescriptor> lock_;
  std::vector<model::NamedTensor> pending_;
  std::map<std::string, std::string> metadata_;
  std::chrono::steady_clock::time_point last_flush_;
};

}  // namespace vmoba::train
