#include "train/optim/tensor_updates.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>
#include <map>

#include "core/check.h"
#include "core/parallel.h"
#include "core/random.h"

namespace vmoba::train {
namespace {

constexpr int64_t kPartValues = 64 * updates::kScaleValues;  // of a tensor, for one thread

// Seven decades up to 1; in each the steps' middles. Every further decade has twice as many steps.
updates::CodeTable code_table(bool is_signed) {
  constexpr int kDecades = 7;
  std::vector<double> values = {0.0, 1.0};
  for (int decade = 0; decade < kDecades; ++decade) {
    const int steps = (is_signed ? 1 : 2) << decade;
    const double scale = std::pow(10.0, decade + 1 - kDecades), width = 0.9 / steps;
    for (int step = 0; step < steps; ++step) {
      values.push_back(scale * (0.1 + width * (step + 0.5)));
      if (is_signed) values.push_back(-values.back());
    }
  }
  std::sort(values.begin(), values.end());
  updates::CodeTable out{};
  VMOBA_CHECK(values.size() == std::size(out.values), "expected 256 codes, found {}", values.size());
  for (size_t i = 0; i < values.size(); ++i) out.values[i] = float(values[i]);
  for (size_t i = 0; i + 1 < values.size(); ++i) out.bounds[i] = float((values[i] + values[i + 1]) / 2);
  return out;
}

updates::Width width_of(const at::Tensor& values) {
  const at::ScalarType dtype = values.scalar_type();
  VMOBA_CHECK(dtype == at::kFloat || dtype == at::kBFloat16,
              "optimiser: expected weights and gradients in fp32 or bf16, found {}", c10::toString(dtype));
  return dtype == at::kFloat ? updates::Width::kFloat : updates::Width::kBfloat16;
}

at::Tensor as_float(const at::Tensor& scalar) {
  return scalar.defined() ? scalar.to(at::kFloat) : scalar;
}

float* floats(const at::Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<float>() : nullptr;
}

void check_launch(cudaError_t error) {
  VMOBA_CHECK(error == cudaSuccess, "optimiser: expected its kernel to be launched, found: {}",
              cudaGetErrorString(error));
}

cudaStream_t stream_of(const at::Tensor& x) {
  return c10::cuda::getCurrentCUDAStream(x.device().index()).stream();
}

// `part(begin, end)` over a tensor's values, by all threads.
void for_each_range(int64_t values, const std::function<void(int64_t, int64_t)>& part) {
  for_each_part((values + kPartValues - 1) / kPartValues, at::get_num_threads(),
                [&](int64_t i) { part(i * kPartValues, std::min(values, (i + 1) * kPartValues)); });
}

}  // namespace

const updates::CodeTables& code_tables() {
  static const updates::CodeTables tables{code_table(true), code_table(false)};
  return tables;
}

std::array<uint32_t, 2> rounding_key(const Placement& placement, const std::string& parameter) {
  return stream_key(placement.seed, "round/" + parameter);
}

int64_t first_value_of(const Placement& placement, const at::Tensor& part) {
  return placement.part * part.numel();
}

AdamGroup::AdamGroup(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters,
                     const std::vector<Optimizer::State>& state, const Placement& placement)
    : config_(config) {
  std::vector<Member> all(parameters.size());
  bool coded = false;
  for (const Optimizer::State& s : state) {
    Member& member = all[s.parameter];
    if (s.layout.name == "exp_avg" || s.layout.name == "exp_avg_8bit") member.first = s.tensor;
    if (s.layout.name == "exp_avg_sq" || s.layout.name == "exp_avg_sq_8bit") member.second = s.tensor;
    if (s.layout.name == "exp_avg_scale") member.first_scale = s.tensor;
    if (s.layout.name == "exp_avg_sq_scale") member.second_scale = s.tensor;
    coded |= member.first_scale.defined();
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!all[i].first.defined()) continue;
    all[i].parameter = i;
    all[i].weight = parameters[i].tensor;
    all[i].first_value = first_value_of(placement, parameters[i].tensor);
    all[i].key = rounding_key(placement, parameters[i].name);
    members_.push_back(all[i]);
  }
  if (!coded) return;
  // The tables are floats alone, one behind the other.
  const auto* values = reinterpret_cast<const float*>(&code_tables());
  constexpr int64_t kCount = sizeof(updates::CodeTables) / sizeof(float);
  tables_ = at::from_blob(const_cast<float*>(values), {kCount}, at::kFloat).to(members_.front().weight.device());
}

void AdamGroup::update(int64_t number, const Update& update, const std::vector<Optimizer::Treatment>& treatments) {
  std::map<Optimizer::Treatment, std::vector<const Member*>> groups;
  for (const Member& member : members_) groups[treatments[member.parameter]].push_back(&member);
  for (const auto& [treatment, members] : groups) update_members(members, number, update, treatment);
}

void AdamGroup::update_members(const std::vector<const Member*>& members, int64_t number, const Update& update,
                               const Optimizer::Treatment& treatment) {
  const double lr = treatment.lr_factor * update.lr;
  const at::NoGradGuard no_grad;
  const at::Tensor factor = as_float(update.gradient_factor), skip = as_float(update.skip);
  const double beta1 = config_.betas[0], beta2 = config_.betas[1];
  updates::Step step;
  step.beta1 = float(beta1), step.beta2 = float(beta2);
  step.rest1 = float(1 - beta1), step.rest2 = float(1 - beta2);
  step.eps = float(config_.eps);
  step.decay = float(1 - lr * (treatment.decays ? config_.weight_decay : 0));
  step.step_size = float(lr / (1 - std::pow(beta1, double(number))));
  step.root = float(std::sqrt(1 - std::pow(beta2, double(number))));
  step.number = uint64_t(number);
  step.factor = floats(factor), step.skip = floats(skip);
  std::vector<at::Tensor> gradients;  // kept until the launch
  std::vector<updates::Tensor> tensors;
  for (const Member* member : members) {
    const Member& m = *member;
    gradients.push_back(m.weight.grad().defined() ? m.weight.grad().contiguous() : at::zeros_like(m.weight));
    const at::Tensor& gradient = gradients.back();
    tensors.push_back({m.weight.mutable_data_ptr(),
                       gradient.const_data_ptr(),
                       m.first.mutable_data_ptr(),
                       m.second.mutable_data_ptr(),
                       floats(m.first_scale),
                       floats(m.second_scale),
                       m.weight.numel(),
                       m.first_value,
                       {m.key[0], m.key[1]},
                       width_of(m.weight),
                       width_of(gradient)});
  }
  const auto* tables =
      tables_.defined() ? reinterpret_cast<const updates::CodeTables*>(tables_.const_data_ptr<float>()) : nullptr;
  if (const at::Tensor& any = members.front()->weight; any.is_cuda()) {
    const c10::cuda::CUDAGuard guard(any.device());
    check_launch(updates::adamw(tensors.data(), int64_t(tensors.size()), step, tables, stream_of(any)));
    return;
  }
  for (const updates::Tensor& t : tensors)
    for_each_range(t.values, [&](int64_t begin, int64_t end) { updates::adamw_on_cpu(t, begin, end, step, tables); });
}

void add_change(const WeightChange& call, const at::Tensor& skip) {
  const at::NoGradGuard no_grad;
  VMOBA_CHECK(call.change.scalar_type() == at::kBFloat16 && call.change.is_contiguous() &&
                  call.change.numel() == call.weight.numel(),
              "expected {} contiguous values in bf16 as a weight's change, found {} in {}", call.weight.numel(),
              call.change.numel(), c10::toString(call.change.scalar_type()));
  const at::Tensor flag = as_float(skip);
  const updates::Sum sum{call.weight.mutable_data_ptr(),
                         call.change.const_data_ptr(),
                         call.weight.numel(),
                         call.first_value,
                         {call.key[0], call.key[1]},
                         width_of(call.weight),
                         call.decay,
                         call.size,
                         uint64_t(call.number),
                         floats(flag)};
  if (call.weight.is_cuda()) {
    const c10::cuda::CUDAGuard guard(call.weight.device());
    check_launch(updates::add_change(sum, stream_of(call.weight)));
    return;
  }
  for_each_range(sum.values, [&](int64_t begin, int64_t end) { updates::add_change_on_cpu(sum, begin, end); });
}

}  // namespace vmoba::train
