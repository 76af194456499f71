// Bytes of a file at any place: for parsers of headers that lie far apart.
#pragma once
#include <cstdint>
#include <fstream>
#include <string>

namespace vmoba::data {

class ByteFile {
 public:
  explicit ByteFile(const std::string& path) : file_(path, std::ios::binary) {}
  bool is_open() const { return file_.is_open(); }
  // `length` bytes from `offset` on, or fewer at the end of the file.
  std::string read(uint64_t offset, size_t length) {
    std::string out(length, '\0');
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(offset));
    if (!file_) return {};
    file_.read(out.data(), static_cast<std::streamsize>(length));
    out.resize(static_cast<size_t>(file_.gcount()));
    return out;
  }

 private:
  std::ifstream file_;
};

// An unsigned number of `length` bytes; 0 where the text is too short.
inline uint64_t number_at(const std::string& bytes, size_t offset, size_t length, bool big_endian = true) {
  if (offset > bytes.size() || length > bytes.size() - offset) return 0;
  uint64_t out = 0;
  for (size_t i = 0; i < length; ++i)
    out = out << 8 | static_cast<unsigned char>(bytes[offset + (big_endian ? i : length - 1 - i)]);
  return out;
}

}  // namespace vmoba::data
