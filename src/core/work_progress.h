// How far a long piece of work is whose size is known: hashing, loading, decoding, saving. Log lines, none in the first
// seconds, so that short work is silent. Any thread may add.
#pragma once
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace vmoba {

class WorkProgress {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr const char* kBytes = "bytes";  // printed as MB or GB

  // "loading 'x.safetensors'", its whole amount, and what is counted ("frames").
  WorkProgress(std::string what, int64_t total, std::string unit = kBytes);
  ~WorkProgress();  // says how long it took, if anything was said before
  WorkProgress(const WorkProgress&) = delete;
  WorkProgress& operator=(const WorkProgress&) = delete;

  void add(int64_t amount);
  void add(int64_t amount, Clock::time_point now);

 private:
  std::string amount_text(int64_t amount) const;

  const std::string what_, unit_;
  const int64_t total_;
  const Clock::time_point start_;
  std::mutex mutex_;
  int64_t done_ = 0;
  Clock::time_point said_;
  bool spoke_ = false;
};

}  // namespace vmoba
