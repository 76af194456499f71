// One process at a time in a folder: a lock file that names its holder (host, pid) and beats while the holder lives.
//
// The kernel's lock on the file decides where the file system has such locks, at once and also after a kill. Where it
// has none, or where another host wrote the file (locks of some network file systems end at the host), the heartbeat
// decides: whoever comes watches whether it goes on, by its own clock. Owns the file and a thread.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "core/file_descriptor.h"

namespace vmoba {

struct FolderLockOptions {
  double beat_s = 5;
  double silence_s = 20;     // a heartbeat that rests so long is that of a dead process
  bool kernel_locks = true;  // false: as on a file system without them
};

class FolderLock {
 public:
  // Takes the lock at `path`, whose folder exists; waits for up to silence_s where only the heartbeat can tell. What a
  // dead process left is taken over, with a line. Throws Error(kInput) naming the living holder where there is one;
  // `what` is what it holds ("run.dir 'runs/a'"), `remedy` what to do ("choose another run.dir"). Throws
  // Error(kRuntime) where the file cannot be written.
  FolderLock(std::string path, std::string what, const std::string& remedy, FolderLockOptions options = {});
  // Removes the file where it is still ours.
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  // The folder was renamed: its lock is at `path` now.
  void follow(const std::string& path);
  // Throws Error(kRuntime) where another process took the lock over, as after this one was stopped for long.
  void check() const;

 private:
  bool take(const std::string& remedy);
  [[noreturn]] void refuse(const std::string& remedy) const;
  bool is_ours() const;
  void write_record(bool must);
  void keep_beating();

  std::string path_, what_, own_;  // own_: the record without its heartbeat
  FolderLockOptions options_;
  std::unique_ptr<FileDescriptor> file_;
  bool kernel_held_ = false;
  int64_t beats_ = 0;
  std::atomic<bool> lost_{false};
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace vmoba
