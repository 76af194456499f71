#include "attention/full/full.h"

#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

namespace vmoba::attention {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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

// torch's choice where this file can take its result from a tape; error where it cannot, or where the kernel would be
// handed copies with head sizes filled up.
at::SDPBackend recorded_backend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  if (q.is_cuda() && q.size(-1) % 8 != 0) return at::SDPBackend::error;
  const auto choice = static_cast<at::SDPBackend>(at::_fused_sdp_choice(q.detach(), k.detach(), v.detach()));
  const bool known =
      choice == at::SDPBackend::flash_attention || (choice == at::SDPBackend::cudnn_attention && q.is_cuda());
  return known ? choice : at::SDPBackend::error;
}

// out, log-sum-exp and the state of a random generator that nothing draws from.
std::vector<at::Tensor> attend(at::SDPBackend backend, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  if (!q.is_cuda()) {
    const auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v);
    return {out, lse, {}, {}};
  }
  if (backend == at::SDPBackend::cudnn_attention) {
    const auto result = at::_scaled_dot_product_cudnn_attention(q, k, v, {}, /*compute_log_sumexp=*/true);
    return {std::get<0>(result), std::get<1>(result), std::get<6>(result), std::get<7>(result)};
  }
  const auto result = at::_scaled_dot_product_flash_attention(q, k, v);
  return {std::get<0>(result), std::get<1>(result), std::get<6>(result), std::get<7>(result)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(at::SDPBackend backend, const variable_list& saved,
                                                               const at::Tensor& dout) {
  const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &lse = saved[4];
  if (!q.is_cuda())
    return at::_scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, false);
  const int64_t queries = q.size(2), keys = k.size(2);
  if (backend == at::SDPBackend::cudnn_attention)
    return at::_scaled_dot_product_cudnn_attention_backward(dout, q, k, v, out, lse, saved[5], saved[6], {}, {}, {},
                                                            queries, keys, 0.0, false);
  return at::_scaled_dot_product_flash_attention_backward(dout, q, k, v, out, lse, {}, {}, queries, keys, 0.0, false,
                                                          saved[5], saved[6]);
}

// scaled_dot_product_attention by a known kernel, whose results a tape records or replays. q, k, v [B, N, S or L, D].
struct RecordedAttention : torch::autograd::Function<RecordedAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            int64_t backend, ResultTape* tape) {
    constexpr size_t kResults = 4;
    const std::vector<at::Tensor> results =
        tape->replays() ? tape->next(kResults) : attend(static_cast<at::SDPBackend>(backend), q, k, v);
    if (!tape->replays()) tape->record(results);
    variable_list saved = {q, k, v};
    saved.insert(saved.end(), results.begin(), results.end());
    context->save_for_backward(std::move(saved));
    context->saved_data["backend"] = backend;
    return results[0];
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto backend = static_cast<at::SDPBackend>(context->saved_data["backend"].toInt());
    const auto [dq, dk, dv] = attend_backward(backend, context->get_saved_variables(), gradients[0]);
    return {dq, dk, dv, {}, {}};
  }
};

}  // namespace

at::Tensor full_attention(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND,
                          ResultTape* tape) {
  if (q_BSND.is_cuda()) prefer_cudnn();
  const at::Tensor q = q_BSND.transpose(1, 2), k = k_BLND.transpose(1, 2), v = v_BLND.transpose(1, 2);
  const at::SDPBackend backend = tape == nullptr ? at::SDPBackend::error : recorded_backend(q, k, v);
  if (backend == at::SDPBackend::error) return at::scaled_dot_product_attention(q, k, v).transpose(1, 2);
  return RecordedAttention::apply(q, k, v, static_cast<int64_t>(backend), tape).transpose(1, 2);
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
