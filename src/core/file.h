// Files that appear whole or not at all, and reads with a bound.
#pragma once
#include <cstdint>
#include <string>

namespace vmoba {

// Writes `bytes` to a temporary name beside `path`, fsyncs it, renames it to `path` and fsyncs the folder, so that a
// crash at any instant leaves the old file or the new one. Throws Error(kRuntime) naming path, reason and fix.
void write_file_atomically(const std::string& path, const std::string& bytes);

// The whole file; Error(kInput) where it is missing, unreadable (StorageError, core/storage.h) or larger than
// `max_bytes`. `what` names it.
std::string read_file(const std::string& path, int64_t max_bytes, const std::string& what);

// fsync of a file or folder that was written by other means. Throws Error(kRuntime).
void sync_path(const std::string& path);

}  // namespace vmoba
