// A file of a run that grows by whole records (lines of metrics, TensorBoard events). A disk that takes no more never
// ends the run: what was not written waits in memory and goes out before the next record, so that nothing is lost where
// space comes back. The file itself always ends with a whole record. Owns the open file.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace vmoba::train {

class AppendedFile {
 public:
  // Opens `path`, which is made where it is missing and has `size_bytes`, with `flags` of open(2) beside O_WRONLY.
  // Throws Error(kRuntime) naming it.
  AppendedFile(std::string path, int flags, int64_t size_bytes);
  // Tries a last time to write what waits; warns of what is lost.
  ~AppendedFile();
  AppendedFile(const AppendedFile&) = delete;
  AppendedFile& operator=(const AppendedFile&) = delete;

  // Warns at the beginning of an outage and says when it is over. Up to kMostWaitingBytes wait; later records of the
  // same outage are dropped.
  void append(std::string_view record);
  // As far as the disk: a power cut takes nothing that came before. Warns where the disk refuses.
  void sync();
  const std::string& path() const { return path_; }

  static constexpr size_t kMostWaitingBytes = size_t{64} << 20;

 private:
  // Writes what waits, or leaves the file as it was; the error, or 0.
  int write_waiting();
  void report(int error);

  std::string path_;
  int fd_ = -1;
  int64_t size_bytes_;
  std::string waiting_;
  int64_t dropped_ = 0;  // records
  bool outage_ = false;
};

}  // namespace vmoba::train
