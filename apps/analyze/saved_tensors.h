// Queries, keys and values of a model's layers as files, on which kernels are timed (`vmoba-bench attention --inputs`).
#pragma once
#include <set>
#include <string>
#include <vector>

#include "attention/observer.h"

namespace vmoba::apps {

// Saves the first call of each layer as <folder>/qkv-<layer>.safetensors: q, k, v [B, S+X, N, D] in bf16, with
// metadata `grid` ("24x36x64") and `text_tokens`. Passes every call on.
class SavedTensors : public attention::AttentionObserver {
 public:
  // `layers`: those that are saved; empty: all. An empty folder saves nothing. `next` must outlive it.
  SavedTensors(std::string folder, std::vector<int64_t> layers, attention::AttentionObserver& next);
  void observe(const attention::LayerAttention& layer, const attention::Grid& grid, int64_t text_tokens,
               const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND) override;

 private:
  std::string folder_;
  std::vector<int64_t> wanted_;
  attention::AttentionObserver& next_;
  std::set<int64_t> saved_;
};

}  // namespace vmoba::apps
