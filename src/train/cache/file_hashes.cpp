#include "train/cache/file_hashes.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/check.h"
#include "core/file.h"
#include "core/hash.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWeightsPrefix = "weights:";

// One line each: hash, bytes, nanoseconds, path. Lines that are none are skipped: the file only saves time.
template <typename Use>
void read_lines(const fs::path& path, const Use& use) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string hash, name;
    int64_t size = -1, changed = -1;
    if (words >> hash >> size >> changed && words.get() == ' ' && std::getline(words, name) && hash.size() == 16)
      use(name, hash, size, changed);
  }
}

}  // namespace

FileHashes::FileHashes(const std::string& dir, int64_t rank) : path_(fmt::format("{}/files-r{:03d}.txt", dir, rank)) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("files-r") || entry.path().extension() != ".txt") continue;
    read_lines(entry.path(), [&](const std::string& path, const std::string& hash, int64_t size, int64_t changed) {
      Entry& known = entries_[path];
      if (changed >= known.changed_ns) known = {size, changed, hash};
    });
  }
}

std::string FileHashes::of_file(const std::string& path) {
  struct stat info {};
  VMOBA_CHECK_INPUT(::stat(path.c_str(), &info) == 0, "expected a file at '{}', found: {}", path, std::strerror(errno));
  const int64_t changed = int64_t(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec;
  const auto known = entries_.find(path);
  if (known != entries_.end() && known->second.size_bytes == info.st_size && known->second.changed_ns == changed)
    return known->second.hash;
  return (entries_[path] = {int64_t(info.st_size), changed, hash_text(file_hash(path))}).hash;
}

std::string FileHashes::of_weights(const std::vector<std::string>& names,
                                   const std::function<std::vector<std::string>()>& files) {
  std::string joined;
  bool gone = false;
  for (const std::string& name : names) {
    if (name.empty()) continue;
    if (!joined.empty()) joined += ' ';
    joined += name;
    gone = gone || !fs::exists(name);
  }
  if (joined.empty()) return "none";
  const std::string remembered = kWeightsPrefix + joined;
  if (gone && entries_.contains(remembered)) return entries_[remembered].hash;
  ContentHash all;
  for (const std::string& file : files()) all.add(of_file(file));
  return (entries_[remembered] = {0, 0, hash_text(all.value())}).hash;
}

void FileHashes::save() const {
  std::string text;
  for (const auto& [path, entry] : entries_)
    if (path.find('\n') == std::string::npos)
      text += fmt::format("{} {} {} {}\n", entry.hash, entry.size_bytes, entry.changed_ns, path);
  write_file_atomically(path_, text);
}

}  // namespace vmoba::train
