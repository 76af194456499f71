// Thin device wrappers of the sm_90a instructions the attention kernels use: mbarriers, named barriers, bulk copies and
// TMA, cp.async, stmatrix, wgmma with its shared memory descriptors; and the host call that encodes a tensor map.
//
// Tiles are "panels": R rows of 64 bf16 (128 bytes) in the 128-byte swizzle, panel base 1,024-byte aligned, so the
// 16-byte chunk j of row r lies at byte r * 128 + ((j ^ (r % 8)) * 16). A tile of D columns is D / 64 panels in a row.
// Nothing here owns memory or synchronises more than its name says.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

namespace vmoba::kernels::hopper {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define VMOBA_HOPPER_CODE 1
#endif

constexpr int kPanelColumns = 64;    // bf16 columns of one swizzled panel
constexpr int kPanelRowBytes = 128;  // bytes of one of its rows

// ---- addresses ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Byte offset of 16-byte chunk `chunk` (0..7) of row `row` inside a panel.
__device__ __forceinline__ uint32_t swizzled_offset(int row, int chunk) {
  return uint32_t(row) * kPanelRowBytes + uint32_t((chunk ^ (row & 7)) << 4);
}

__device__ __forceinline__ bool elect_one() {
  uint32_t elected = 0;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, p;\n}\n"
      : "=r"(elected));
  return elected != 0;
}

// ---- mbarriers (a uint64_t in shared memory, passed as its address)
// --------------------------------------------------

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Of single barriers and of arrays of them.
__device__ __forceinline__ void mbarrier_init_each(uint32_t arrivals, uint64_t& barrier) {
  mbarrier_init(smem_address(&barrier), arrivals);
}
template <class Barriers, size_t Count>
__device__ __forceinline__ void mbarrier_init_each(uint32_t arrivals, Barriers (&barriers)[Count]) {
  for (Barriers& one : barriers) mbarrier_init_each(arrivals, one);
}

// Makes initialised mbarriers visible to the async proxy; a __syncthreads() must follow.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// One arrival that also announces `bytes` of bulk copies to come.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

// Bytes to wait for, without an arrival.
__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Waits for the phase of this parity to complete. A fresh barrier counts as having completed parity 1.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// ---- named barriers (0 is __syncthreads) ---------------------------------------------------------------------------

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// A barrier that also tells whether any of its threads says so.
__device__ __forceinline__ bool named_barrier_any(int id, int threads, bool here) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred p, q;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "bar.red.or.pred q, %2, %3, p;\n"
      "selp.u32 %0, 1, 0, q;\n}\n"
      : "=r"(any)
      : "r"(uint32_t(here)), "r"(id), "r"(threads)
      : "memory");
  return any != 0;
}

// ---- proxies and registers -----------------------------------------------------------------------------------------

// Orders this thread's generic writes to shared memory before later async-proxy reads (wgmma, bulk copies).
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

template <int Registers>
__device__ __forceinline__ void register_increase() {
#ifdef VMOBA_HOPPER_CODE
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
#endif
}

template <int Registers>
__device__ __forceinline__ void register_decrease() {
#ifdef VMOBA_HOPPER_CODE
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
#endif
}

// ---- bulk copies and TMA -------------------------------------------------------------------------------------------

// L2 cache policies, the encodings createpolicy.fractional.L2::*  gives for a fraction of 1.
constexpr uint64_t kEvictNormal = 0x1000000000000000;
constexpr uint64_t kEvictFirst = 0x12F0000000000000;
constexpr uint64_t kEvictLast = 0x14F0000000000000;

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Loads the box at (x0, x1, x2, x3), x0 the contiguous dimension; its bytes complete on `barrier`.
__device__ __forceinline__ void tma_load_4d(uint32_t destination, const CUtensorMap* map, uint32_t barrier, int x0,
                                            int x1, int x2, int x3, uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;\n" ::"r"(destination),
      "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tma_store_4d(const CUtensorMap* map, uint32_t source, int x0, int x1, int x2, int x3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n" ::"l"(map),
               "r"(source), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}

// Contiguous copies: both addresses 16-byte aligned, bytes a multiple of 16.
__device__ __forceinline__ void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void bulk_store(void* destination, uint32_t source, uint32_t bytes,
                                           uint64_t policy = kEvictNormal) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;\n" ::"l"(destination),
               "r"(source), "r"(bytes), "l"(policy)
               : "memory");
}

__device__ __forceinline__ void bulk_reduce_add_f32(float* destination, uint32_t source, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n" ::"l"(destination),
               "r"(source), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}

// At most `Pending` of this thread's groups still read their shared memory source.
template <int Pending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(Pending) : "memory");
}

// At most `Pending` of this thread's groups are unfinished, their global writes included.
template <int Pending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// ---- cp.async ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void cp_async_16(uint32_t destination, const void* source) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n" ::"r"(destination), "l"(source) : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// One arrival when all cp.async of this thread so far have landed (count one arrival per thread).
__device__ __forceinline__ void cp_async_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}

// ---- small arithmetic ----------------------------------------------------------------------------------------------

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// Four 8 x 8 bf16 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "r"(m0), "r"(m1),
               "r"(m2), "r"(m3)
               : "memory");
}

__device__ __forceinline__ void stmatrix_x4_transposed(uint32_t address, uint32_t m0, uint32_t m1, uint32_t m2,
                                                       uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "r"(m0),
               "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

// Two of them, at the addresses of lanes 0 to 15.
__device__ __forceinline__ void stmatrix_x2_transposed(uint32_t address, uint32_t m0, uint32_t m1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(address), "r"(m0), "r"(m1)
               : "memory");
}

// What these two store, from the same addresses.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t address, uint32_t& m0, uint32_t& m1, uint32_t& m2,
                                                       uint32_t& m3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(m0), "=r"(m1), "=r"(m2), "=r"(m3)
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_transposed(uint32_t address, uint32_t& m0, uint32_t& m1) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(m0), "=r"(m1)
               : "r"(address)
               : "memory");
}

// ---- wgmma ---------------------------------------------------------------------------------------------------------
// m64nNk16, bf16 operands, fp32 accumulators in the usual layout: element (row, column) of thread t of the warpgroup is
// acc[(column / 8) * 4 + (row / 8 % 2) * 2 + column % 2], row = t / 32 * 16 + t % 32 / 4 (+ 8), column pair t % 4.

__device__ __forceinline__ void wgmma_fence() {
#ifdef VMOBA_HOPPER_CODE
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#ifdef VMOBA_HOPPER_CODE
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}

template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
#ifdef VMOBA_HOPPER_CODE
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
#endif
}

// Keeps the compiler from moving accesses of accumulators across the asynchronous instructions.
template <int Count>
__device__ __forceinline__ void wgmma_fence_operand(float (&registers)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// The assembler moves a wgmma wait up past everything that touches no memory, say in front of exponentials, which then
// no longer overlap the products. A store that depends on their sum, and never happens (arithmetic gives no such NaN),
// holds the wait back.
__device__ __forceinline__ void keep_before_wait(float sum, uint32_t address) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.eq.u32 p, %0, 0x7FA55A5A;\n"
      "@p st.shared.u32 [%1], %0;\n}\n" ::"r"(__float_as_uint(sum)),
      "r"(address)
      : "memory");
}

// Descriptor of an operand whose K runs along a panel's columns (64 of them): rows are M or N, one after the other.
// The next 16 of K: + 2 (32 bytes); the next 64: the next panel. 8 rows further: + 64.
__device__ __forceinline__ uint64_t descriptor_k_major(uint32_t address) {
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// Descriptor of an operand whose K runs along a panel's rows (transposed use): the columns are M or N, 64 a panel, the
// next 64 `panel_bytes` further. The next 16 of K: + 128 (16 rows, 2,048 bytes).
__device__ __forceinline__ uint64_t descriptor_mn_major(uint32_t address, uint32_t panel_bytes) {
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(panel_bytes >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}

template <int N, bool ATransposed, bool BTransposed>
struct WgmmaAtom;

#define VMOBA_WGMMA_ATOM(N)                                                                             \
  template <bool A, bool B>                                                                             \
  struct WgmmaAtom<N, A, B> {                                                                           \
    static constexpr auto kA = A ? cute::SM90::GMMA::Major::MN : cute::SM90::GMMA::Major::K;            \
    static constexpr auto kB = B ? cute::SM90::GMMA::Major::MN : cute::SM90::GMMA::Major::K;            \
    using SharedA = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_SS<kA, kB>;                           \
    using RegisterA = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_RS<cute::SM90::GMMA::Major::K, kB>; \
  }
VMOBA_WGMMA_ATOM(64);
VMOBA_WGMMA_ATOM(96);
VMOBA_WGMMA_ATOM(128);
VMOBA_WGMMA_ATOM(192);
#ifdef CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED  // define it before including this header; costs compile time
VMOBA_WGMMA_ATOM(72);
VMOBA_WGMMA_ATOM(80);
VMOBA_WGMMA_ATOM(112);
VMOBA_WGMMA_ATOM(144);
VMOBA_WGMMA_ATOM(160);
VMOBA_WGMMA_ATOM(176);
#endif
#undef VMOBA_WGMMA_ATOM

namespace detail {
template <class Atom, int Count, size_t... I>
__device__ __forceinline__ void wgmma_shared(uint64_t a, uint64_t b, float (&acc)[Count], bool accumulate,
                                             std::index_sequence<I...>) {
  Atom::fma(a, b, acc[I]..., accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}
template <class Atom, int Count, size_t... I>
__device__ __forceinline__ void wgmma_register(const uint32_t (&a)[4], uint64_t b, float (&acc)[Count], bool accumulate,
                                               std::index_sequence<I...>) {
  Atom::fma(a[0], a[1], a[2], a[3], b, acc[I]...,
            accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}
}  // namespace detail

// acc (64 x N, N / 2 registers) = A B (+ acc), A and B in shared memory; Transposed = mn-major descriptor.
template <int N, bool ATransposed = false, bool BTransposed = false>
__device__ __forceinline__ void wgmma_ss(uint64_t a, uint64_t b, float (&acc)[N / 2], bool accumulate) {
  using Atom = typename WgmmaAtom<N, ATransposed, BTransposed>::SharedA;
  detail::wgmma_shared<Atom>(a, b, acc, accumulate, std::make_index_sequence<N / 2>{});
}

// The same with A (64 x 16) in registers: {rows r, K 2t..}, {r + 8, 2t..}, {r, 2t + 8..}, {r + 8, 2t + 8..}.
template <int N, bool BTransposed = false>
__device__ __forceinline__ void wgmma_rs(const uint32_t (&a)[4], uint64_t b, float (&acc)[N / 2], bool accumulate) {
  using Atom = typename WgmmaAtom<N, false, BTransposed>::RegisterA;
  detail::wgmma_register<Atom>(a, b, acc, accumulate, std::make_index_sequence<N / 2>{});
}

// ---- host: tensor maps ---------------------------------------------------------------------------------------------

// Map of a bf16 [batch, heads, tokens, columns] view (element strides; columns contiguous) for boxes of `box_rows`
// tokens x 64 columns in the 128-byte swizzle; coordinates are (column, token, head, sample). Reads past `tokens` give
// zeros. No libcuda is linked: the entry point comes from the runtime.
inline cudaError_t encode_row_map(CUtensorMap* map, const void* data, int64_t columns, int64_t tokens, int64_t heads,
                                  int64_t batch, int64_t token_stride, int64_t head_stride, int64_t batch_stride,
                                  int box_rows) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess || entry == nullptr) return cudaErrorNotSupported;
  // A dimension of one element is never stepped over, so its stride may be anything legal.
  const int64_t row_bytes = columns * 2;
  const cuuint64_t sizes[4] = {cuuint64_t(columns), cuuint64_t(tokens), cuuint64_t(heads), cuuint64_t(batch)};
  const cuuint64_t strides[3] = {cuuint64_t(tokens > 1 ? token_stride * 2 : row_bytes),
                                 cuuint64_t(heads > 1 ? head_stride * 2 : row_bytes),
                                 cuuint64_t(batch > 1 ? batch_stride * 2 : row_bytes)};
  const cuuint32_t box[4] = {cuuint32_t(kPanelColumns), cuuint32_t(box_rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result =
      reinterpret_cast<Encode>(entry)(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), sizes, strides,
                                      box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace vmoba::kernels::hopper
