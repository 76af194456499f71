// Helpers of the kernel tests: device arrays with guard bytes around them, partitions, random numbers.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/kernels/kernels.h"

namespace vmoba::kernels::test {

inline void cuda_ok(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#define CUDA_OK(call) ::vmoba::kernels::test::cuda_ok((call), #call)

// Launches on made-up addresses are harmless only where there is no GPU.
inline bool without_gpu() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0;
}

// `count` elements of T on the device between two guard zones of 0xA5; contents poisoned with 0xFF (NaN) until written.
// For compute-sanitizer's initcheck, which takes poison for values, VMOBA_KERNEL_TESTS_UNPOISONED leaves it out.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    CUDA_OK(cudaMalloc(&base_, bytes() + 2 * kGuard));
    CUDA_OK(cudaMemset(base_, kCanary, kGuard));
    CUDA_OK(cudaMemset(base_ + kGuard + bytes(), kCanary, kGuard));
    if (std::getenv("VMOBA_KERNEL_TESTS_UNPOISONED") == nullptr) poison();
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(int64_t(host.size())) {
    if (count_ > 0) CUDA_OK(cudaMemcpy(get(), host.data(), bytes(), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(base_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return reinterpret_cast<T*>(base_ + kGuard); }
  int64_t bytes() const { return count_ * int64_t(sizeof(T)); }
  std::vector<T> host() const {
    std::vector<T> out(count_);
    if (count_ > 0) CUDA_OK(cudaMemcpy(out.data(), get(), bytes(), cudaMemcpyDeviceToHost));
    return out;
  }
  void poison(int byte = 0xFF) { CUDA_OK(cudaMemset(get(), byte, bytes())); }
  // False when something wrote outside the array.
  bool guards_intact() const {
    std::vector<unsigned char> zone(kGuard);
    for (const char* at : {base_, base_ + kGuard + bytes()}) {
      CUDA_OK(cudaMemcpy(zone.data(), at, kGuard, cudaMemcpyDeviceToHost));
      for (unsigned char c : zone) {
        if (c != kCanary) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 4096;
  static constexpr int kCanary = 0xA5;
  int64_t count_;
  char* base_ = nullptr;
};

// A partition with its device tables. `token_of` empty: identity.
struct TestPartition {
  std::vector<int32_t> token_of, block_of, block_start;
  int max_block = 0;
  bool identity = true;

  int tokens() const { return int(block_of.size()); }
  int blocks() const { return int(block_start.size()) - 1; }
};

// Blocks of the given sizes; token order random unless identity.
inline TestPartition partition_of(const std::vector<int>& blocks, bool identity, std::mt19937& rng) {
  TestPartition p;
  p.identity = identity;
  p.block_start.push_back(0);
  for (size_t i = 0; i < blocks.size(); ++i) {
    p.block_of.insert(p.block_of.end(), blocks[i], int(i));
    p.block_start.push_back(p.block_start.back() + blocks[i]);
    p.max_block = std::max(p.max_block, blocks[i]);
  }
  for (int i = 0; i < p.tokens(); ++i) p.token_of.push_back(i);
  if (!identity) std::shuffle(p.token_of.begin(), p.token_of.end(), rng);
  return p;
}

// `blocks` blocks of `tokens` tokens, sizes equal (ragged = false) or random; token order random unless identity.
inline TestPartition make_partition(int tokens, int blocks, bool ragged, bool identity, std::mt19937& rng) {
  TestPartition p;
  p.identity = identity;
  std::vector<int> size(blocks, tokens / blocks);
  for (int i = 0; i < tokens % blocks; ++i) ++size[i];
  for (int i = 0; ragged && i < 4 * blocks; ++i) {
    int &from = size[rng() % blocks], &to = size[rng() % blocks];
    const int moved = from > 1 ? int(rng() % unsigned(from)) : 0;
    from -= moved, to += moved;
  }
  p.block_start.push_back(0);
  for (int c = 0; c < blocks; ++c) {
    p.block_of.insert(p.block_of.end(), size[c], c);
    p.block_start.push_back(p.block_start.back() + size[c]);
    p.max_block = std::max(p.max_block, size[c]);
  }
  for (int i = 0; i < tokens; ++i) p.token_of.push_back(i);
  if (!identity) std::shuffle(p.token_of.begin(), p.token_of.end(), rng);
  return p;
}

struct DevicePartition {
  explicit DevicePartition(const TestPartition& p)
      : token_of(p.token_of), block_of(p.block_of), block_start(p.block_start) {
    view = {token_of.get(), block_of.get(), block_start.get(), p.max_block, p.identity};
  }
  DeviceArray<int32_t> token_of, block_of, block_start;
  PartitionView view;
};

inline uint16_t to_bf16(float x) {  // round to nearest even; no NaN
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t x) {
  const uint32_t u = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline std::vector<uint16_t> random_bf16(int64_t count, float scale, std::mt19937& rng) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<uint16_t> out(count);
  for (auto& x : out) x = to_bf16(normal(rng));
  return out;
}

// Contiguous [B, tokens, N, D].
inline TensorView view_of(void* data, const Shape& s) {
  const int64_t row = int64_t(s.heads) * s.head_dim;
  return {data, s.tokens() * row, row, s.head_dim};
}

}  // namespace vmoba::kernels::test
