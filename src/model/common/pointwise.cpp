#include "model/common/pointwise.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/view_as_real.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "model/common/modulation.h"
#include "model/common/norm.h"
#include "model/common/rope.h"
#include "model/kernels/pointwise.h"

namespace vmoba::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_launch(cudaError_t error, const char* what) {
  VMOBA_CHECK(error == cudaSuccess,
              "{}: expected its kernel to be launched, found: {}; model.pointwise=reference does "
              "without",
              what, cudaGetErrorString(error));
}
void check_first_order() {
  VMOBA_CHECK(!at::GradMode::is_enabled(),
              "expected a first-order backward, found create_graph; these kernels have no second derivative "
              "(model.pointwise=reference has)");
}

cudaStream_t stream_of(const at::Tensor& x) {
  return c10::cuda::getCurrentCUDAStream(x.device().index()).stream();
}

// Contiguous and aligned to 16 bytes, as the kernels read it.
at::Tensor packed(const at::Tensor& x) {
  const at::Tensor out = x.contiguous();
  return reinterpret_cast<uintptr_t>(out.const_data_ptr()) % 16 == 0 ? out : out.clone();
}
at::Tensor packed_floats(const at::Tensor& x) {
  return packed(x.to(at::kFloat));
}

// x [.., E] in `runs` equal runs.
pointwise::Rows rows_of(const at::Tensor& x, int64_t runs) {
  return {x.numel() / x.size(-1), runs, int32_t(x.size(-1))};
}

at::Tensor statistics(const at::Tensor& x) {
  return at::empty({x.numel() / x.size(-1)}, x.options().dtype(at::kFloat).requires_grad(false));
}
at::Tensor workspace_for(const pointwise::Rows& rows, const at::Tensor& x) {
  return at::empty({int64_t(pointwise::column_workspace_bytes(rows))}, x.options().dtype(at::kByte));
}
float* floats(const at::Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<float>() : nullptr;
}

// autograd numbers the tensors that a function was given, those that are not there left out: remembers the number of
// the bias behind `before` tensors.
void note_bias(AutogradContext* context, const std::optional<at::Tensor>& bias, int64_t before) {
  context->saved_data["bias"] = bias ? before : int64_t(-1);
}
bool needs_bias(AutogradContext* context) {
  const int64_t number = context->saved_data["bias"].toInt();
  return number >= 0 && context->needs_input_grad(size_t(number));
}

// The norm of x with scale and shift [runs, E], and what its backward needs.
struct Normed {
  at::Tensor in, factor, out, mean, rstd;
};
Normed layer_normed(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift, double offset, double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  Normed n{packed(x), packed_floats(scale), {}, {}, {}};
  const at::Tensor summand = packed_floats(shift);
  n.out = at::empty_like(n.in), n.mean = statistics(n.in), n.rstd = statistics(n.in);
  const pointwise::LayerNorm call{rows_of(n.in, n.factor.numel() / n.in.size(-1)),
                                  float(eps),
                                  float(offset),
                                  n.in.const_data_ptr(),
                                  n.factor.const_data_ptr<float>(),
                                  summand.const_data_ptr<float>(),
                                  n.out.mutable_data_ptr(),
                                  floats(n.mean),
                                  floats(n.rstd)};
  check_launch(pointwise::layer_norm(call, stream_of(n.in)), "layer norm");
  return n;
}

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scale,
                            const at::Tensor& shift, double offset, double eps) {
    const Normed n = layer_normed(x, scale, shift, offset, eps);
    context->save_for_backward({n.in, n.factor, n.mean, n.rstd});
    context->saved_data["offset"] = offset;
    return n.out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &scale = saved[1];
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor dy = packed(gradients[0]), dx = at::empty_like(x);
    const bool columns = context->needs_input_grad(1) || context->needs_input_grad(2);
    const at::Tensor dscale = columns ? at::empty_like(scale) : at::Tensor();
    const at::Tensor dshift = columns ? at::empty_like(scale) : at::Tensor();
    const pointwise::Rows rows = rows_of(x, scale.numel() / x.size(-1));
    const at::Tensor workspace = workspace_for(rows, x);
    const pointwise::LayerNormBackward call{rows,
                                            float(context->saved_data["offset"].toDouble()),
                                            x.const_data_ptr(),
                                            dy.const_data_ptr(),
                                            scale.const_data_ptr<float>(),
                                            saved[2].const_data_ptr<float>(),
                                            saved[3].const_data_ptr<float>(),
                                            dx.mutable_data_ptr(),
                                            floats(dscale),
                                            floats(dshift),
                                            workspace.mutable_data_ptr()};
    check_launch(pointwise::layer_norm_backward(call, stream_of(x)), "layer norm, backward");
    return {dx, dscale, dshift, {}, {}};
  }
};

// table [places, P, 2] or nothing; each place has rows_per_place rows of x. The bias [E] is that of the map to x.
struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& given_table, const std::optional<at::Tensor>& bias,
                            int64_t rows_per_place, double eps) {
    const at::Tensor table = given_table.value_or(at::Tensor());
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor in = packed(x), factor = packed_floats(weight);
    const at::Tensor out = at::empty_like(in), rstd = statistics(in);
    pointwise::RmsNorm call{rows_of(in, 1), float(eps), in.const_data_ptr(), factor.const_data_ptr<float>()};
    set_table(table, rows_per_place, call);
    call.y = out.mutable_data_ptr(), call.rstd = floats(rstd);
    check_launch(pointwise::rms_norm(call, stream_of(in)), "RMS norm");
    context->save_for_backward({in, factor, rstd, table});
    note_bias(context, bias, given_table ? 3 : 2);
    context->saved_data["rows_per_place"] = rows_per_place;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor dy = packed(gradients[0]), dx = at::empty_like(x);
    const at::Tensor dweight = context->needs_input_grad(1) ? at::empty_like(weight) : at::Tensor();
    const at::Tensor dbias = needs_bias(context) ? at::empty_like(weight) : at::Tensor();
    pointwise::RmsNormBackward call{rows_of(x, 1), x.const_data_ptr(), dy.const_data_ptr(),
                                    weight.const_data_ptr<float>(), saved[2].const_data_ptr<float>()};
    const at::Tensor workspace = workspace_for(call.rows, x);
    set_table(saved[3], context->saved_data["rows_per_place"].toInt(), call);
    call.dx = dx.mutable_data_ptr(), call.dweight = floats(dweight), call.dbias = floats(dbias);
    call.workspace = workspace.mutable_data_ptr();
    check_launch(pointwise::rms_norm_backward(call, stream_of(x)), "RMS norm, backward");
    return {dx, dweight, {}, dbias, {}, {}};
  }

 private:
  template <typename Call>
  static void set_table(const at::Tensor& table, int64_t rows_per_place, Call& call) {
    if (!table.defined()) return;
    call.rows_per_place = rows_per_place;
    call.table = static_cast<const float2*>(table.const_data_ptr());
    call.table_rows = table.size(0);
    call.head_dim = int32_t(2 * table.size(1));
  }
};

// Sums of runs together: [runs, E] -> [E].
at::Tensor over_runs(const at::Tensor& sums) {
  return sums.size(0) == 1 ? sums.squeeze(0) : sums.sum(0);
}

// gate [runs, E]; the bias [E] is that of the map to the branch.
struct GatedSumFunction : torch::autograd::Function<GatedSumFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& branch,
                            const at::Tensor& gate, const std::optional<at::Tensor>& bias) {
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor in = packed(x), added = packed(branch), factor = packed_floats(gate);
    const at::Tensor out = at::empty_like(in);
    const pointwise::GatedSum call{rows_of(in, factor.numel() / in.size(-1)), in.const_data_ptr(),
                                   added.const_data_ptr(), factor.const_data_ptr<float>(), out.mutable_data_ptr()};
    check_launch(pointwise::gated_sum(call, stream_of(in)), "gated residual");
    context->save_for_backward({added, factor});
    note_bias(context, bias, 3);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &branch = saved[0], &gate = saved[1];
    const c10::cuda::CUDAGuard guard(branch.device());
    const at::Tensor dy = packed(gradients[0]), dbranch = at::empty_like(branch);
    const at::Tensor dgate = context->needs_input_grad(2) ? at::empty_like(gate) : at::Tensor();
    const at::Tensor dbias = needs_bias(context) ? at::empty_like(gate) : at::Tensor();
    const pointwise::Rows rows = rows_of(branch, gate.numel() / branch.size(-1));
    const at::Tensor workspace = workspace_for(rows, branch);
    const pointwise::GatedSumBackward call{rows,
                                           branch.const_data_ptr(),
                                           dy.const_data_ptr(),
                                           gate.const_data_ptr<float>(),
                                           dbranch.mutable_data_ptr(),
                                           floats(dgate),
                                           workspace.mutable_data_ptr(),
                                           floats(dbias)};
    check_launch(pointwise::gated_sum_backward(call, stream_of(branch)), "gated residual, backward");
    return {dy, dbranch, dgate, dbias.defined() ? over_runs(dbias) : dbias};
  }
};

// A sum, the scale [runs, E] of its norm and the norm's statistics.
struct NormedSum {
  at::Tensor sum, scale, mean, rstd;
};
struct SumGradients {
  at::Tensor dx, dbranch, columns;  // pointwise::SumNormBackward
};
// From the gradients of the sum and of its norm. The gate [runs, E], and then the branch, may be undefined.
SumGradients sum_norm_gradients(const NormedSum& of, const at::Tensor& branch, const at::Tensor& gate,
                                const variable_list& gradients, double offset) {
  const c10::cuda::CUDAGuard guard(of.sum.device());
  const at::Tensor dsum = packed(gradients[0]), dy = packed(gradients[1]);
  pointwise::SumNormBackward call;
  call.rows = rows_of(of.sum, of.scale.numel() / of.sum.size(-1)), call.offset = float(offset);
  SumGradients out{at::empty_like(of.sum), {}, at::empty({4, call.rows.runs, call.rows.width}, of.scale.options())};
  out.dbranch = gate.defined() ? at::empty_like(of.sum) : out.dx;
  const at::Tensor workspace =
      at::empty({int64_t(pointwise::sum_norm_workspace_bytes(call.rows))}, of.sum.options().dtype(at::kByte));
  call.sum = of.sum.const_data_ptr(), call.dsum = dsum.const_data_ptr(), call.dy = dy.const_data_ptr();
  if (gate.defined()) call.branch = branch.const_data_ptr(), call.gate = floats(gate);
  call.scale = floats(of.scale), call.mean = floats(of.mean), call.rstd = floats(of.rstd);
  call.dx = out.dx.mutable_data_ptr(), call.dbranch = out.dbranch.mutable_data_ptr();
  call.columns = floats(out.columns), call.workspace = workspace.mutable_data_ptr();
  check_launch(pointwise::sum_norm_backward(call, stream_of(of.sum)), "residual and norm, backward");
  return out;
}

// gate, where there is one, scale and shift [runs, E].
struct SumNormFunction : torch::autograd::Function<SumNormFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& branch,
                               const std::optional<at::Tensor>& gate, const at::Tensor& scale, const at::Tensor& shift,
                               const std::optional<at::Tensor>& bias, double offset, double eps) {
    const c10::cuda::CUDAGuard guard(x.device());
    const at::Tensor in = packed(x), added = packed(branch), factor = packed_floats(scale),
                     summand = packed_floats(shift), by = gate ? packed_floats(*gate) : at::Tensor();
    const at::Tensor sum = at::empty_like(in), out = at::empty_like(in), mean = statistics(in), rstd = statistics(in);
    pointwise::SumNorm call{rows_of(in, factor.numel() / in.size(-1)), float(eps), float(offset), in.const_data_ptr(),
                            added.const_data_ptr()};
    call.gate = floats(by), call.scale = floats(factor), call.shift = floats(summand);
    call.sum = sum.mutable_data_ptr(), call.y = out.mutable_data_ptr();
    call.mean = floats(mean), call.rstd = floats(rstd);
    check_launch(pointwise::sum_norm(call, stream_of(in)), "residual and norm");
    context->save_for_backward({sum, gate ? added : at::Tensor(), by, factor, mean, rstd});
    note_bias(context, bias, gate ? 5 : 4);
    context->saved_data["offset"] = offset;
    return {sum, out};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const SumGradients g = sum_norm_gradients({saved[0], saved[3], saved[4], saved[5]}, saved[1], saved[2], gradients,
                                              context->saved_data["offset"].toDouble());
    return {g.dx,
            g.dbranch,
            saved[2].defined() ? g.columns[3] : at::Tensor(),
            g.columns[0],
            g.columns[1],
            needs_bias(context) ? over_runs(g.columns[2]) : at::Tensor(),
            {},
            {}};
  }
};

// x, as it is, and its norm; scale and shift [runs, E].
struct NormBesideFunction : torch::autograd::Function<NormBesideFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scale,
                               const at::Tensor& shift, double offset, double eps) {
    const Normed n = layer_normed(x, scale, shift, offset, eps);
    context->save_for_backward({n.in, n.factor, n.mean, n.rstd});
    context->saved_data["offset"] = offset;
    return {x, n.out};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const SumGradients g = sum_norm_gradients({saved[0], saved[1], saved[2], saved[3]}, {}, {}, gradients,
                                              context->saved_data["offset"].toDouble());
    return {g.dx, g.columns[0], g.columns[1], {}, {}};
  }
};

}  // namespace

bool takes_kernels(const ModelConfig& config, const at::Tensor& x) {
  return config.pointwise == "auto" && x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.numel() > 0 &&
         x.size(-1) % 8 == 0 && x.size(-1) <= pointwise::kMaxWidth &&
         at::cuda::getDeviceProperties(x.device().index())->major >= 8;
}

at::Tensor modulated_norm(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& scale_BGE,
                          const at::Tensor& shift_BGE) {
  if (!takes_kernels(config, x_BSE))
    return modulate(layer_norm(x_BSE, {}, {}, config.eps), scale_BGE, shift_BGE, x_BSE.scalar_type());
  return LayerNormFunction::apply(x_BSE, scale_BGE.flatten(0, 1), shift_BGE.flatten(0, 1), /*offset=*/1.0, config.eps);
}

at::Tensor affine_norm(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_E,
                       const at::Tensor& bias_E) {
  if (!takes_kernels(config, x_BSE)) return layer_norm(x_BSE, weight_E, bias_E, config.eps).to(x_BSE.scalar_type());
  return LayerNormFunction::apply(x_BSE, weight_E.to(at::kFloat), bias_E.to(at::kFloat), /*offset=*/0.0, config.eps);
}

namespace {

std::optional<at::Tensor> packed_table(const at::Tensor& table_SP) {
  if (!table_SP.defined()) return std::nullopt;
  return packed(at::view_as_real(table_SP));
}

// The bias of the map to x, where its gradient is summed here.
std::optional<at::Tensor> summed_bias(const ModelConfig& config, const at::Tensor& x, const at::Tensor& bias) {
  return bias.defined() && sums_for_biases(config, x) ? std::optional(bias) : std::nullopt;
}

}  // namespace

bool sums_for_biases(const ModelConfig& config, const at::Tensor& x) {
  return takes_kernels(config, x) && x.size(-1) <= pointwise::kMaxSumNormWidth && config.head_dim % 8 == 0;
}

Linear without_bias_gradient(const Linear& map, bool sums) {
  Linear out = map;
  if (sums) out.bias = map.bias.detach();
  return out;
}

at::Tensor norm_of_heads(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_E,
                         const at::Tensor& table_SP, const at::Tensor& bias_E) {
  const auto split_heads = [&](const at::Tensor& x) { return x.unflatten(-1, {config.heads, config.head_dim}); };
  if (!takes_kernels(config, x_BSE) || config.head_dim % 8 != 0) {
    const at::Tensor normed_BSND = split_heads(rms_norm(x_BSE, weight_E, config.eps));
    return table_SP.defined() ? apply_rope(normed_BSND, table_SP) : normed_BSND;
  }
  return split_heads(RmsNormFunction::apply(x_BSE, weight_E.to(at::kFloat), packed_table(table_SP),
                                            summed_bias(config, x_BSE, bias_E),
                                            /*rows_per_place=*/1, config.eps));
}

at::Tensor norm_of_each_head(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_D,
                             const at::Tensor& table_SP) {
  const at::Tensor x_BSND = x_BSE.unflatten(-1, {config.heads, config.head_dim});
  if (!takes_kernels(config, x_BSE) || config.head_dim % 8 != 0) {
    const at::Tensor normed_BSND = rms_norm(x_BSND, weight_D, config.eps);
    return table_SP.defined() ? apply_rope(normed_BSND, table_SP) : normed_BSND;
  }
  return RmsNormFunction::apply(x_BSND, weight_D.to(at::kFloat), packed_table(table_SP), std::nullopt, config.heads,
                                config.eps);
}

at::Tensor gated_sum(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& branch_BSE,
                     const at::Tensor& gate_BGE, const at::Tensor& bias_E) {
  if (!takes_kernels(config, x_BSE)) return add_gated(x_BSE, branch_BSE, gate_BGE);
  return GatedSumFunction::apply(x_BSE, branch_BSE, gate_BGE.flatten(0, 1), summed_bias(config, x_BSE, bias_E));
}

SumAndNorm sum_norm(const ModelConfig& config, const Residual& residual, const NormOfSum& norm) {
  const auto& [x_BSE, branch_BSE, gate_BGE, bias_E] = residual;
  if (!sums_for_biases(config, x_BSE)) {
    const at::Tensor sum = gate_BGE.defined() ? gated_sum(config, x_BSE, branch_BSE, gate_BGE) : x_BSE + branch_BSE;
    return {sum, norm.modulated ? modulated_norm(config, sum, norm.scale, norm.shift)
                                : affine_norm(config, sum, norm.scale, norm.shift)};
  }
  std::optional<at::Tensor> gate;
  if (gate_BGE.defined()) gate = gate_BGE.flatten(0, 1);
  const auto rows = [&](const at::Tensor& x) {
    if (norm.modulated) return x.flatten(0, 1);
    return x.to(at::kFloat).expand({gate ? gate->size(0) : 1, x.size(-1)});
  };
  const variable_list out = SumNormFunction::apply(x_BSE, branch_BSE, gate, rows(norm.scale), rows(norm.shift),
                                                   summed_bias(config, x_BSE, bias_E),
                                                   /*offset=*/norm.modulated ? 1.0 : 0.0, config.eps);
  return {out[0], out[1]};
}

SumAndNorm norm_beside(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& scale_BGE,
                       const at::Tensor& shift_BGE) {
  if (!sums_for_biases(config, x_BSE)) return {x_BSE, modulated_norm(config, x_BSE, scale_BGE, shift_BGE)};
  const variable_list out = NormBesideFunction::apply(x_BSE, scale_BGE.flatten(0, 1), shift_BGE.flatten(0, 1),
                                                      /*offset=*/1.0, config.eps);
  return {out[0], out[1]};
}

}  // namespace vmoba::model
