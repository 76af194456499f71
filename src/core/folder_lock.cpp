#include "core/folder_lock.h"

#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <sstream>

#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"

namespace vmoba {
namespace {

using Clock = std::chrono::steady_clock;

// A whole record, always of this size, so that it is replaced in place and needs no further space on a full disk.
constexpr size_t kRecordBytes = 512;

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string time_text() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::localtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &parts);
  return text.data();
}

// Opened anew: a network file system shows what others wrote when a file is opened.
std::string read_record(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY | O_NONBLOCK);
  std::string text(kRecordBytes, '\0');
  const ssize_t got = file.get() < 0 ? 0 : ::pread(file.get(), text.data(), text.size(), 0);
  text.resize(got > 0 ? size_t(got) : 0);
  return text;
}

// Of "name: value" lines.
std::string value_in(const std::string& record, const std::string& name) {
  std::istringstream lines(record);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(name + ": ")) return line.substr(name.size() + 2);
  return "?";
}

std::string holder_in(const std::string& record) {
  return fmt::format("process {} on {} (since {})", value_in(record, "pid"), value_in(record, "host"),
                     value_in(record, "since"));
}

enum class KernelLock { kTaken, kHeld, kNone };

KernelLock lock_file(int fd) {
  struct flock whole {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  while (::fcntl(fd, F_OFD_SETLK, &whole) != 0) {
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == EACCES ? KernelLock::kHeld : KernelLock::kNone;
  }
  return KernelLock::kTaken;
}

bool same_file(int fd, const std::string& path) {
  struct stat open {
  }, named{};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_ino == named.st_ino &&
         open.st_dev == named.st_dev;
}

// Whether the heartbeat in the file goes on.
bool still_beats(const std::string& path, double silence_s) {
  const std::string before = read_record(path);
  const Clock::time_point start = Clock::now();
  while (seconds_since(start) < silence_s) {
    std::this_thread::sleep_for(std::chrono::duration<double>(silence_s / 40));
    if (read_record(path) != before) return true;
  }
  return false;
}

}  // namespace

FolderLock::FolderLock(std::string path, std::string what, const std::string& remedy, FolderLockOptions options)
    : path_(std::move(path)), what_(std::move(what)), options_(options) {
  own_ = fmt::format("host: {}\npid: {}\nsince: {}\nnonce: {}\n", host_name(), ::getpid(), time_text(),
                     std::chrono::system_clock::now().time_since_epoch().count());
  while (!take(remedy)) {
  }
  write_record(/*must=*/true);
  if (!kernel_held_) {  // another may have come in the same moment
    std::this_thread::sleep_for(std::chrono::duration<double>(options_.silence_s / 20));
    if (!is_ours()) refuse(remedy);
  }
  thread_ = std::thread([this] { keep_beating(); });
}

FolderLock::~FolderLock() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (is_ours()) ::unlink(path_.c_str());
}

void FolderLock::refuse(const std::string& remedy) const {
  throw_input("{}: expected no other process there, found {} at work; wait for it, stop it, or {}", what_,
              holder_in(read_record(path_)), remedy);
}

// False where the file went away meanwhile: its holder left.
bool FolderLock::take(const std::string& remedy) {
  file_ = std::make_unique<FileDescriptor>(path_, O_RDWR | O_CREAT | O_EXCL);
  const bool made = file_->get() >= 0;
  if (!made && errno == EEXIST) file_ = std::make_unique<FileDescriptor>(path_, O_RDWR | O_CREAT);
  VMOBA_CHECK(file_->get() >= 0, "{}: expected to write its lock '{}', found: {}; change its permissions or {}", what_,
              path_, std::strerror(errno), remedy);
  const KernelLock kernel = options_.kernel_locks ? lock_file(file_->get()) : KernelLock::kNone;
  const std::string record = read_record(path_);
  if (kernel == KernelLock::kHeld) {
    if (!same_file(file_->get(), path_)) return false;
    refuse(remedy);
  }
  if (!same_file(file_->get(), path_)) return false;
  kernel_held_ = kernel == KernelLock::kTaken;
  if (made || (kernel_held_ && record.empty())) return true;
  const bool kernel_decides = kernel_held_ && value_in(record, "host") == host_name();
  if (!kernel_decides) {
    log_info("{}: {} left its lock; watching for {} s whether it lives", what_, holder_in(record), options_.silence_s);
    if (still_beats(path_, options_.silence_s)) {
      if (!same_file(file_->get(), path_)) return false;
      refuse(remedy);
    }
    if (!same_file(file_->get(), path_)) return false;
  }
  log_warning("{}: took the lock over from {}, which lives no more", what_, holder_in(record));
  return true;
}

bool FolderLock::is_ours() const {
  return same_file(file_->get(), path_) && read_record(path_).starts_with(own_);
}

void FolderLock::write_record(bool must) {
  std::string text = own_ + fmt::format("heartbeat: {}\n", beats_);
  text.resize(kRecordBytes, ' ');
  text.back() = '\n';
  const bool wrote = ::pwrite(file_->get(), text.data(), text.size(), 0) == ssize_t(text.size());
  VMOBA_CHECK(wrote || !must, "{}: expected to write its lock '{}', found: {}", what_, path_, std::strerror(errno));
  ::fdatasync(file_->get());  // a network file system may keep what is written for long
}

void FolderLock::keep_beating() {
  std::unique_lock lock(mutex_);
  while (!stopped_.wait_for(lock, std::chrono::duration<double>(options_.beat_s), [this] { return stop_; })) {
    if (!is_ours()) {
      lost_ = true;
      return;
    }
    ++beats_;
    write_record(/*must=*/false);
  }
}

void FolderLock::follow(const std::string& path) {
  const std::lock_guard lock(mutex_);
  path_ = path;
}

void FolderLock::check() const {
  VMOBA_CHECK(!lost_,
              "{}: expected to hold its lock, found {} there, which took it over while this process stood "
              "still; this process ends and leaves the folder to it",
              what_, holder_in(read_record(path_)));
}

}  // namespace vmoba
