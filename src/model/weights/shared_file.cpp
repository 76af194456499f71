#include "model/weights/shared_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/check.h"
#include "core/file_descriptor.h"

namespace vmoba::model {
namespace {

constexpr int64_t kPieceBytes = 64 << 20;

[[noreturn]] void fail(const std::string& path, int error) {
  throw_runtime("expected to write '{}', found: {}; free disk space or choose another folder", path,
                std::strerror(error));
}

void write_at(const FileDescriptor& file, const std::string& path, const char* bytes, int64_t count, int64_t offset) {
  while (count > 0) {
    const ssize_t wrote = ::pwrite(file.get(), bytes, size_t(count), offset);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) fail(path, errno);
    bytes += wrote;
    count -= wrote;
    offset += wrote;
  }
}

void check_written(const FileDescriptor& file, const std::string& path, const ByteRun& run) {
  std::vector<char> read(size_t(std::min<int64_t>(run.count, 1 << 20)));
  for (int64_t done = 0; done < run.count;) {
    const size_t wanted = size_t(std::min(run.count - done, int64_t(read.size())));
    const ssize_t got = ::pread(file.get(), read.data(), wanted, run.offset + done);
    if (got < 0 && errno == EINTR) continue;
    VMOBA_CHECK(got > 0 && std::memcmp(read.data(), static_cast<const char*>(run.bytes) + done, size_t(got)) == 0,
                "expected '{}' to read back as it was written at byte {}, found other bytes; check the disk", path,
                run.offset + done);
    done += got;
  }
}

}  // namespace

namespace {

// Takes the disk space now, so that a full disk is met before anything is copied or written. File systems that cannot
// promise space (NFS before 4.2, some FUSE) only set the length.
void reserve_space(const FileDescriptor& file, const std::string& path, int64_t bytes) {
  int code = -1;
  do {
    code = ::fallocate(file.get(), 0, 0, bytes);
  } while (code != 0 && errno == EINTR);
  if (code == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) fail(path, errno);
  if (::ftruncate(file.get(), bytes) != 0) fail(path, errno);
}

}  // namespace

void create_shared_file(const std::string& path, const SafetensorsLayout& layout) {
  const FileDescriptor file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (file.get() < 0) fail(path, errno);
  reserve_space(file, path, layout.file_bytes);
  write_at(file, path, layout.header.data(), int64_t(layout.header.size()), 0);
}

void write_byte_runs(const std::string& path, const std::vector<ByteRun>& runs, const std::function<bool()>& stop) {
  const FileDescriptor file(path, O_RDWR);
  if (file.get() < 0) fail(path, errno);
  for (const ByteRun& run : runs) {
    for (int64_t done = 0; done < run.count; done += kPieceBytes) {
      VMOBA_CHECK(!stop(), "expected to write all of '{}', found that another rank could not", path);
      write_at(file, path, static_cast<const char*>(run.bytes) + done, std::min(kPieceBytes, run.count - done),
               run.offset + done);
    }
  }
  if (::fsync(file.get()) != 0) fail(path, errno);
  for (const ByteRun& run : runs) check_written(file, path, run);
}

}  // namespace vmoba::model
