// Rings between the warps of the sm_90a kernels.
//
// A ring has a fixed number of slots in shared memory. Each slot has an mbarrier `full`, which completes a phase when
// the slot's object is there, and an mbarrier `empty`, which completes one when every reader is done with it. Producer
// and readers each count the objects that they have passed; the count names the slot and the phase. A reader waits for
// `full` in its phase, the producer for `empty` in the other one, which a fresh barrier counts as completed.
#pragma once
#include "attention/kernels/hopper.cuh"

namespace vmoba::kernels {

constexpr int kWarpgroupThreads = 128;

// How many objects went through a ring of `Slots` (a power of two) slots; names the next one's slot and phase.
template <int Slots>
struct RingPosition {
  uint32_t count = 0;
  __device__ __forceinline__ int slot() const { return int(count % Slots); }
  __device__ __forceinline__ uint32_t phase() const { return count / Slots % 2; }
  __device__ __forceinline__ void advance() { ++count; }
};

__device__ __forceinline__ uint32_t barrier(uint64_t& object) {
  return hopper::smem_address(&object);
}

}  // namespace vmoba::kernels
