// An open file that closes itself. -1 inside where open() failed; errno then says why.
#pragma once
#include <fcntl.h>
#include <unistd.h>

#include <string>

namespace vmoba {

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags, mode_t mode = 0644)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace vmoba
