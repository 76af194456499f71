#include "apps/analyze/saved_tensors.h"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "model/weights/safetensors.h"

namespace vmoba::apps {

SavedTensors::SavedTensors(std::string folder, std::vector<int64_t> layers, attention::AttentionObserver& next)
    : folder_(std::move(folder)), wanted_(std::move(layers)), next_(next) {
  if (!folder_.empty()) std::filesystem::create_directories(folder_);
}

void SavedTensors::observe(const attention::LayerAttention& layer, const attention::Grid& grid, int64_t text_tokens,
                           const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND) {
  const bool wanted = wanted_.empty() || std::count(wanted_.begin(), wanted_.end(), layer.index) > 0;
  if (!folder_.empty() && wanted && saved_.insert(layer.index).second) {
    const auto kept = [](const at::Tensor& x) { return x.to(at::kCPU, at::kBFloat16).contiguous(); };
    model::write_safetensors(
        fmt::format("{}/qkv-{:02d}.safetensors", folder_, layer.index),
        {{"q", kept(q_BSND)}, {"k", kept(k_BSND)}, {"v", kept(v_BSND)}},
        {{"grid", fmt::format("{}x{}x{}", grid.t, grid.h, grid.w)}, {"text_tokens", fmt::to_string(text_tokens)}});
  }
  next_.observe(layer, grid, text_tokens, q_BSND, k_BSND, v_BSND);
}

}  // namespace vmoba::apps
