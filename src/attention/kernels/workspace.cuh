// How every stage cuts its tables out of the caller's workspace: one piece after another, each aligned. A stage carves
// in one function, which sizes the workspace when it is given no memory and hands out pointers when it is. Host only.
#pragma once
#include <cstdint>

namespace vmoba::kernels {

constexpr int64_t kWorkspaceAlign = 256;

class Workspace {
 public:
  // Null: only counts, every piece is null.
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * int64_t(sizeof(T)) + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
    return piece;
  }
  // Of all pieces so far.
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace vmoba::kernels
