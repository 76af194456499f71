#include "core/file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/check.h"
#include "core/file_descriptor.h"
#include "core/file_kind.h"
#include "core/storage.h"

namespace vmoba {
namespace {

[[noreturn]] void fail_write(const std::string& path, int error) {
  ::unlink(path.c_str());
  throw_runtime("expected to write '{}', found: {}; free disk space or choose another folder", path,
                std::strerror(error));
}

std::string parent_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

void sync_path(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY);
  VMOBA_CHECK(file.get() >= 0 && ::fsync(file.get()) == 0, "expected to sync '{}' to disk, found: {}", path,
              std::strerror(errno));
}

void write_file_atomically(const std::string& path, const std::string& bytes) {
  const std::string temporary = path + ".tmp";
  {
    const FileDescriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    if (file.get() < 0) fail_write(temporary, errno);
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t wrote = ::write(file.get(), bytes.data() + done, bytes.size() - done);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) fail_write(temporary, errno);
      done += size_t(wrote);
    }
    if (::fsync(file.get()) != 0) fail_write(temporary, errno);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail_write(temporary, errno);
  sync_path(parent_of(path));
}

std::string read_file(const std::string& path, int64_t max_bytes, const std::string& what) {
  const FileDescriptor file(path, O_RDONLY | O_NONBLOCK);  // without it, opening a FIFO waits for a writer
  if (file.get() < 0)
    throw StorageError(ErrorKind::kInput,
                       fmt::format("expected {} at '{}', found: {}", what, path, std::strerror(errno)), errno);
  struct stat info {};
  VMOBA_CHECK_INPUT(::fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode),
                    "expected {} at '{}', found no regular file: {}", what, path, what_is_this(path));
  VMOBA_CHECK_INPUT(info.st_size <= max_bytes, "expected {} of at most {} bytes at '{}', found {}", what, max_bytes,
                    path, info.st_size);
  std::string bytes(size_t(info.st_size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw StorageError(ErrorKind::kInput,
                         fmt::format("expected {} at '{}', found: {}", what, path, std::strerror(errno)), errno);
    VMOBA_CHECK_INPUT(got > 0, "expected {} bytes in '{}', found only {}", bytes.size(), path, done);
    done += size_t(got);
  }
  return bytes;
}

}  // namespace vmoba
