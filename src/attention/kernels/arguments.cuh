// What the launch functions check before they touch the GPU: the conditions of kernels.h, each written once. A stage
// asks those that it depends on. Host only.
#pragma once
#include <cmath>
#include <cstdint>

#include "attention/kernels/kernels.h"
#include "attention/kernels/workspace.cuh"

namespace vmoba::kernels {

inline bool is_aligned(const void* pointer, uintptr_t bytes) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline bool shape_valid(const Shape& s) {
  return s.batch > 0 && s.heads > 0 && s.video_tokens > 0 && s.text_tokens >= 0 && s.blocks > 0 &&
         s.blocks <= s.video_tokens && s.first_word >= 0 && s.row_words >= 0 && s.end_word() > s.first_word &&
         s.end_word() <= s.mask_words();
}

// The head sizes of the attend stage.
inline bool attend_shape_valid(const Shape& s) {
  return shape_valid(s) && (s.head_dim == 64 || s.head_dim == 128);
}

// TMA and 16-byte accesses: every row starts at a multiple of 8 elements. Gathers multiply 32-bit token numbers with
// 32-bit byte strides.
inline bool view_valid(const TensorView& view) {
  return is_aligned(view.data, 16) && view.batch_stride % 8 == 0 && view.token_stride % 8 == 0 &&
         view.head_stride % 8 == 0 && view.batch_stride >= 0 && view.token_stride >= 0 &&
         view.token_stride < INT32_MAX / 2 && view.head_stride >= 0;
}

inline bool partition_valid(const PartitionView& partition, const Shape& s) {
  return partition.block_start != nullptr && (partition.identity || partition.token_of != nullptr) &&
         partition.max_block_tokens > 0 && partition.max_block_tokens <= s.video_tokens;
}

inline bool lists_valid(const SlotLists& lists, const Shape& s) {
  return lists.length != nullptr && lists.start != nullptr && is_aligned(lists.row, 16) &&
         lists.row_stride >= slots_per_head_capacity(s) && lists.row_stride % kSlotAlign == 0;
}

inline bool masks_valid(const SlotLists& lists) {
  return lists.mask != nullptr && lists.word_rank != nullptr;
}

inline bool workspace_valid(const void* workspace) {
  return is_aligned(workspace, kWorkspaceAlign);
}

inline bool scale_valid(float scale) {
  return scale > 0 && std::isfinite(scale);
}

}  // namespace vmoba::kernels
