#include "train/report/appended_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/log.h"

namespace vmoba::train {

AppendedFile::AppendedFile(std::string path, int flags, int64_t size_bytes)
    : path_(std::move(path)), size_bytes_(size_bytes) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | flags, 0644);
  VMOBA_CHECK(fd_ >= 0, "expected to write '{}', found: {}; choose another run.dir", path_, std::strerror(errno));
}

AppendedFile::~AppendedFile() {
  const int error = write_waiting();
  if (error != 0)
    log_warning("{}: expected to write {} bytes that had waited for the disk, found: {}; they are lost", path_,
                waiting_.size(), std::strerror(error));
  ::fsync(fd_);
  ::close(fd_);
}

int AppendedFile::write_waiting() {
  size_t done = 0;
  while (done < waiting_.size()) {
    const ssize_t wrote = ::write(fd_, waiting_.data() + done, waiting_.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) {
      const int error = wrote < 0 ? errno : ENOSPC;
      if (done > 0 && ::ftruncate(fd_, size_bytes_) != 0) {
        // The torn record cannot be taken back: the rest of it must follow.
        waiting_.erase(0, done);
        size_bytes_ += int64_t(done);
      }
      return error;
    }
    done += size_t(wrote);
  }
  size_bytes_ += int64_t(done);
  waiting_.clear();
  return 0;
}

void AppendedFile::report(int error) {
  if (error != 0 && !outage_)
    log_warning("expected to write '{}', found: {}; training goes on and the records wait in memory: free disk space",
                path_, std::strerror(error));
  if (error == 0 && outage_)
    log_info("{}: the disk takes records again{}", path_, dropped_ > 0 ? fmt::format(", {} are lost", dropped_) : "");
  if (error == 0) dropped_ = 0;
  outage_ = error != 0;
}

void AppendedFile::append(std::string_view record) {
  if (waiting_.size() + record.size() > kMostWaitingBytes)
    ++dropped_;
  else
    waiting_ += record;
  report(write_waiting());
}

void AppendedFile::sync() {
  int error = write_waiting();
  if (error == 0 && ::fsync(fd_) != 0) error = errno;
  report(error);
}

}  // namespace vmoba::train
