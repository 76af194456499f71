#include "train/optim/muon.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <regex>

#include "core/check.h"
#include "train/optim/adamw.h"

namespace vmoba::train {
namespace {

constexpr double kA = 3.4445, kB = -4.775, kC = 2.0315, kLeastNorm = 1e-7;

}  // namespace

bool takes_muon(const model::Parameter& parameter) {
  static const std::regex numbered(R"((^|.*\.)\d+\..*)");
  return parameter.shape().size() == 2 && std::regex_match(parameter.name, numbered);
}

std::vector<StateLayout> muon_state(const OptimizerConfig& config, const model::Parameter& parameter) {
  if (!takes_muon(parameter)) return adamw_state(config, parameter);
  return {{"momentum", at::kFloat}};
}

at::Tensor orthogonalized(const at::Tensor& x, int64_t steps) {
  const at::NoGradGuard no_grad;
  const bool tall = x.size(0) > x.size(1);
  at::Tensor out = tall ? x.to(at::kBFloat16).t() : x.to(at::kBFloat16);
  out = out / out.norm().clamp_min(kLeastNorm);
  for (int64_t step = 0; step < steps; ++step) {
    const at::Tensor gram = at::mm(out, out.t());
    out = at::addmm(out, at::addmm(gram, gram, gram, kB, kC), out, kA);
  }
  return tall ? out.t() : out;
}

Muon::Muon(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters, const Placement& placement)
    : Optimizer(parameters, [&](const model::Parameter& p) { return muon_state(config, p); }),
      config_(config),
      placement_(placement),
      rest_(config, parameters, state(), placement) {
  for (const State& s : state()) {
    if (s.layout.name != "momentum") continue;
    const model::Parameter& p = parameters[s.parameter];
    matrices_.push_back({p.tensor, s.tensor, p.shape().vec(), rounding_key(placement, p.name), s.parameter});
  }
  std::stable_sort(matrices_.begin(), matrices_.end(),
                   [](const Matrix& a, const Matrix& b) { return a.shape < b.shape; });
}

at::Tensor Muon::direction(const Matrix& matrix, const Update& update) const {
  const at::Tensor& given = matrix.weight.grad();
  at::Tensor gradient = given.defined() ? given.to(at::kFloat) : at::zeros_like(matrix.momentum);
  if (update.gradient_factor.defined()) gradient = gradient * update.gradient_factor.to(at::kFloat);
  matrix.momentum.lerp_(gradient, 1 - config_.momentum);
  return gradient.lerp(matrix.momentum, config_.momentum).to(at::kBFloat16);
}

std::vector<at::Tensor> Muon::orthogonalized_parts(const std::vector<at::Tensor>& directions,
                                                   at::IntArrayRef shape) const {
  const int64_t part = directions.front().numel(), ranks = placement_.parts, values = c10::multiply_integers(shape);
  const auto whole_of = [&](const at::Tensor& rows) { return rows.reshape({-1}).narrow(0, 0, values).view(shape); };
  if (ranks == 1) {
    const at::Tensor out = orthogonalized(whole_of(directions.front()), config_.newton_schulz_steps);
    return {at::constant_pad_nd(out.reshape({-1}), {0, part - values})};
  }
  // Row r holds this rank's part of the matrix that rank r works on; ranks without one get zeros.
  const at::Tensor sent = at::zeros({ranks, part}, directions.front().options()), taken = at::empty_like(sent);
  for (size_t i = 0; i < directions.size(); ++i) sent[int64_t(i)].copy_(directions[i]);
  placement_.exchange(sent, taken);
  sent.zero_();
  if (placement_.part < int64_t(directions.size())) {
    whole_of(sent).copy_(orthogonalized(whole_of(taken), config_.newton_schulz_steps));
  }
  placement_.exchange(sent, taken);
  std::vector<at::Tensor> out;
  for (size_t i = 0; i < directions.size(); ++i) out.push_back(taken[int64_t(i)]);
  return out;
}

void Muon::apply(const Matrix& matrix, const at::Tensor& change, const Update& update) const {
  const auto rows = double(matrix.shape[0]), columns = double(matrix.shape[1]);
  const double ratio = config_.matrix_lr == "match_rms" ? 0.2 * std::sqrt(std::max(rows, columns))
                                                        : std::sqrt(std::max(1.0, rows / columns));
  const Treatment& treatment = treatments()[matrix.parameter];
  const double lr = update.lr * treatment.lr_factor, decay = treatment.decays ? config_.weight_decay : 0;
  add_change({matrix.weight, change, float(1 - lr * decay), float(lr * ratio),
              first_value_of(placement_, matrix.weight), matrix.key, steps_},
             update.skip);
}

void Muon::step(const Update& update) {
  const at::NoGradGuard no_grad;
  ++steps_;
  rest_.update(steps_, update, treatments());
  for (size_t begin = 0; begin < matrices_.size();) {
    size_t end = begin;
    std::vector<at::Tensor> directions;
    while (end < matrices_.size() && matrices_[end].shape == matrices_[begin].shape &&
           end - begin < size_t(placement_.parts))
      directions.push_back(direction(matrices_[end++], update));
    const auto changes = orthogonalized_parts(directions, matrices_[begin].shape);
    for (size_t i = begin; i < end; ++i) apply(matrices_[i], changes[i - begin], update);
    begin = end;
  }
}

}  // namespace vmoba::train
