#include "data/file_stamp.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/hash.h"
#include "data/byte_file.h"
#include "data/video_reader.h"

namespace vmoba::data {
namespace {

constexpr int64_t kWhole_bytes = 256 << 10;  // smaller files are read whole
constexpr int64_t kPiece_bytes = 16 << 10;
constexpr int64_t kPieces = 4;

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// All but the sample.
FileStamp stat_file(const std::string& path) {
  const struct stat status = file_status(path);
  return {int64_t{status.st_size},     uint64_t{status.st_dev},     uint64_t{status.st_ino},
          nanoseconds(status.st_mtim), nanoseconds(status.st_ctim), 0};
}

uint64_t sample_of(const std::string& path, int64_t bytes) {
  ByteFile file(path);
  const int64_t pieces = bytes <= kWhole_bytes ? 1 : kPieces;
  const int64_t length = pieces == 1 ? bytes : kPiece_bytes;
  ContentHash hash;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = pieces == 1 ? 0 : (bytes - length) / (pieces - 1) * i;
    const std::string piece = file.read(static_cast<uint64_t>(begin), static_cast<size_t>(length));
    if (piece.size() != static_cast<size_t>(length)) throw MediaError("unreadable: its bytes cannot be read", EIO);
    hash.add(piece);
  }
  return hash.value();
}

}  // namespace

struct stat file_status(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0)
    throw MediaError(errno == ENOENT || errno == ENOTDIR ? "missing: no such file"
                                                         : fmt::format("unreadable: {}", std::strerror(errno)),
                     errno);
  return status;
}

FileStamp stamp_file(const std::string& path) {
  FileStamp out = stat_file(path);
  out.sample = sample_of(path, out.bytes);
  return out;
}

void require_unchanged(const FileStamp& planned, const std::string& path) {
  constexpr const char* kCure = "start again to plan its clips anew";
  if (planned.bytes < 0) return;
  FileStamp now = stat_file(path);
  if (now.bytes == 0) return;  // the reader's own word is clearer
  if (now.bytes != planned.bytes)
    throw MediaError(fmt::format("changed: the file had {} bytes when its clips were planned and has {} now; {}",
                                 planned.bytes, now.bytes, kCure));
  now.sample = planned.sample;
  if (now == planned || sample_of(path, now.bytes) == planned.sample) return;
  throw MediaError(fmt::format("changed: the file holds other bytes than when its clips were planned, {} as before; {}",
                               planned.bytes, kCure));
}

}  // namespace vmoba::data
