// Sees the queries, keys and values of self attention, for analyses: what a model computes on, without the model
// knowing.
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/attention.h"

namespace vmoba::attention {

class AttentionObserver {
 public:
  virtual ~AttentionObserver() = default;
  // q, k, v [B, S+X, N, D] of a call of self_attention(), after normalisation and RoPE; to be read while the call
  // lasts.
  virtual void observe(const LayerAttention& layer, const Grid& grid, int64_t text_tokens, const at::Tensor& q_BSND,
                       const at::Tensor& k_BSND, const at::Tensor& v_BSND) = 0;
};

// While it lives, the calls of this thread show their tensors to the observer, which must outlive it. One at a time.
class ObservedAttention {
 public:
  explicit ObservedAttention(AttentionObserver& observer);
  ~ObservedAttention();
  ObservedAttention(const ObservedAttention&) = delete;
  ObservedAttention& operator=(const ObservedAttention&) = delete;
};

// Of this thread; null without one.
AttentionObserver* attention_observer();

}  // namespace vmoba::attention
