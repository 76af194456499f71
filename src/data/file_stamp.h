// What tells a file from another one that takes its place under the same name: size, inode, times, and a hash of some
// of its bytes. A file of other times and the same sampled bytes counts as the same: copies and remounts change times.
#pragma once
#include <cstdint>
#include <string>

struct stat;

namespace vmoba::data {

struct FileStamp {
  int64_t bytes = -1;  // -1: nobody has looked at the file
  uint64_t device = 0, inode = 0;
  int64_t modified_ns = 0, changed_ns = 0;  // contents; contents, name or rights
  uint64_t sample = 0;                      // of both ends and two places between; of all bytes of a small file
  bool operator==(const FileStamp&) const = default;
};

// What the system says of a file (sys/stat.h). Throws MediaError ("missing: ...", "unreadable: ...").
struct stat file_status(const std::string& path);

// Throws MediaError where the file is missing or cannot be read.
FileStamp stamp_file(const std::string& path);

// Throws MediaError ("changed: ...") where the file is another one than that of the stamp, or cannot be read.
void require_unchanged(const FileStamp& planned, const std::string& path);

}  // namespace vmoba::data
