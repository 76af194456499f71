#include "attention/full/full.h"

#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <mutex>

namespace vmoba::attention {
namespace {

// cuDNN's kernels first wherever they can run: the fastest of torch's on Hopper.
void prefer_cudnn() {
  static std::once_flag once;
  std::call_once(once, [] {
    std::vector<int64_t> order;
    for (const at::SDPBackend backend :
         {at::SDPBackend::cudnn_attention, at::SDPBackend::flash_attention, at::SDPBackend::efficient_attention,
          at::SDPBackend::math, at::SDPBackend::overrideable})
      order.push_back(static_cast<int64_t>(backend));
    at::globalContext().setSDPPriorityOrder(order);
  });
}

}  // namespace

at::Tensor full_attention(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND) {
  if (q_BSND.is_cuda()) prefer_cudnn();
  return at::scaled_dot_product_attention(q_BSND.transpose(1, 2), k_BLND.transpose(1, 2), v_BLND.transpose(1, 2))
      .transpose(1, 2);
}

const Method& full_method() {
  static const Method row = [] {
    Method m;
    m.name = "full";
    m.expected_density = [](const LayerAttention&, int64_t) { return 1.0; };
    m.flops = [](const LayerAttention&, const Grid& grid, int64_t heads, int64_t head_dim, double) {
      return attention_flops(grid.tokens(), heads, head_dim, 1, 0);
    };
    return m;
  }();
  return row;
}

}  // namespace vmoba::attention
