// A file in memory, read where it lies.
//
// A file that is cut short while it is mapped, or whose disk fails, ends the process by SIGBUS at the next touch of its
// lost part. guard_mapped_files() turns that into a message that names the file, and exit code 1: no library call can
// return from such a read.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace vmoba {

class MappedFile {
 public:
  // Maps all of `path` for reading. `what` names it ("a safetensors file"). Throws Error(kInput) where it is missing,
  // no regular file or shorter than `least_bytes`.
  MappedFile(const std::string& path, int64_t least_bytes, const std::string& what);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return base_; }
  int64_t bytes() const { return bytes_; }
  // Copies bytes [begin, begin + count) to `out` by reading the file anew. Throws Error(kInput) where it was cut short
  // or cannot be read.
  void read(int64_t begin, int64_t count, void* out) const;
  // Gives the memory of the pages that hold bytes [begin, end) back; they are read from the file again where they are
  // needed.
  void release(int64_t begin, int64_t end) const;

 private:
  std::string path_;
  int64_t bytes_ = 0;
  uint8_t* base_ = nullptr;
  size_t place_ = 0;  // in the table that the guard reads
};

// Installs the handler. Once per process, in main.
void guard_mapped_files();

}  // namespace vmoba
