// Thin device wrappers of the sm_80 instructions the fallback kernels use, beside cp.async of hopper.cuh: ldmatrix,
// mma.sync, and the place of a 16-byte chunk in a tile of swizzled panels (hopper.cuh says what a panel is).
#pragma once
#include "attention/kernels/hopper.cuh"

namespace vmoba::kernels::ampere {

// Four 8 x 8 bf16 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// acc (16 x 8) += A (16 x 16) B (16 x 8). Thread t holds of acc the rows t / 4 and t / 4 + 8, columns 2 (t % 4) + {0,
// 1}.
__device__ __forceinline__ void mma_16x8x16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
      " {%0, %1, %2, %3};\n"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of Rows rows.
template <int Rows>
__device__ __forceinline__ uint32_t tile_offset(int row, int chunk) {
  return chunk / 8 * (Rows * hopper::kPanelRowBytes) + hopper::swizzled_offset(row, chunk % 8);
}

}  // namespace vmoba::kernels::ampere
