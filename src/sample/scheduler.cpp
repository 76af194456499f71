#include "sample/scheduler.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/check.h"

namespace vmoba::sample {
namespace {

constexpr int64_t kTrainTimesteps = 1000;

double shifted(double sigma, double shift) {
  return shift * sigma / (1.0 + (shift - 1.0) * sigma);
}

// `count` values from `start` to `stop`, both included, rounded as numpy.linspace rounds.
std::vector<double> linspace(double start, double stop, int64_t count) {
  std::vector<double> values(count, start);
  const double width = count > 1 ? (stop - start) / double(count - 1) : 0.0;
  for (int64_t i = 1; i < count; ++i) values[i] = start + double(i) * width;
  if (count > 1) values.back() = stop;
  return values;
}

void check_order(int64_t index, int64_t expected, int64_t steps) {
  VMOBA_CHECK(index == 0 || (index == expected && index < steps),
              "expected scheduler step {} of {} (or 0 for a new video), found {}; call step in ascending order",
              expected, steps, index);
}

void check_descending(const std::vector<double>& sigmas, double shift) {
  for (size_t i = 0; i + 1 < sigmas.size(); ++i) {
    VMOBA_CHECK_INPUT(sigmas[i] > sigmas[i + 1],
                      "expected noise levels that fall with every step, found {} after {} with shift {} and {} steps; "
                      "lower sample.shift or sample.steps",
                      sigmas[i + 1], sigmas[i], shift, sigmas.size() - 1);
  }
}

class EulerScheduler : public Scheduler {
 public:
  // Spaced between the ends of the shifted training schedule and then shifted once more: the lower end carries the
  // shift twice. That is what FlowMatchEulerDiscreteScheduler does, and so what published samples were made with.
  static std::unique_ptr<EulerScheduler> between_ends(int64_t steps, double shift) {
    std::vector<double> levels;
    const double highest = float(shifted(1.0, shift)), lowest = float(shifted(1.0 / kTrainTimesteps, shift));
    for (double t : linspace(highest * kTrainTimesteps, lowest * kTrainTimesteps, steps))
      levels.push_back(t / kTrainTimesteps);
    return std::make_unique<EulerScheduler>(levels, shift);
  }
  // Even steps from 1 to 0, shifted once: HunyuanVideo's pipelines.
  static std::unique_ptr<EulerScheduler> even(int64_t steps, double shift) {
    std::vector<double> levels;
    for (int64_t i = 0; i < steps; ++i) levels.push_back(1.0 - double(i) / double(steps));
    return std::make_unique<EulerScheduler>(levels, shift);
  }

  EulerScheduler(const std::vector<double>& levels, double shift) {
    for (const double level : levels) {
      const float sigma = float(shifted(level, shift));
      sigmas_.push_back(sigma);
      timesteps_.push_back(sigma * float(kTrainTimesteps));
    }
    sigmas_.push_back(0.0);
    check_descending(sigmas_, shift);
  }

  const std::vector<double>& timesteps() const override { return timesteps_; }
  const std::vector<double>& sigmas() const override { return sigmas_; }

  at::Tensor step(int64_t index, const at::Tensor& velocity, const at::Tensor& latents) override {
    check_order(index, next_, int64_t(timesteps_.size()));
    next_ = index + 1;
    return latents + velocity.to(latents.scalar_type()) * (sigmas_[index + 1] - sigmas_[index]);
  }

 private:
  std::vector<double> timesteps_, sigmas_;
  int64_t next_ = 0;
};

// UniPC of order 2 on the predicted x0 with B(h) = e^h - 1 (arXiv 2302.04867; "bh2" of diffusers). Each model call
// first corrects the latents it was made at (UniC) and then predicts the next ones (UniP).
class UniPcScheduler : public Scheduler {
 public:
  // `highest`, `lowest`: ends of the unshifted noise levels; the lowest one is not among them.
  UniPcScheduler(double highest, double lowest, int64_t steps, double shift) {
    const std::vector<double> levels = linspace(highest, lowest, steps + 1);
    for (int64_t i = 0; i < steps; ++i) {
      double sigma = shifted(levels[i], shift);
      // At sigma 1 the signal is 0 and its logarithm infinite; diffusers steps aside by the same amount.
      if (i == 0 && std::abs(sigma - 1.0) < 1e-6) sigma -= 1e-6;
      timesteps_.push_back(std::trunc(sigma * kTrainTimesteps));
      sigmas_.push_back(float(sigma));
    }
    sigmas_.push_back(0.0);
    check_descending(sigmas_, shift);
  }

  const std::vector<double>& timesteps() const override { return timesteps_; }
  const std::vector<double>& sigmas() const override { return sigmas_; }

  at::Tensor step(int64_t index, const at::Tensor& velocity, const at::Tensor& latents) override {
    const int64_t steps = int64_t(timesteps_.size());
    check_order(index, next_, steps);
    next_ = index + 1;
    const at::Tensor x0 = latents - velocity.to(latents.scalar_type()) * sigmas_[index];
    if (index == 0) {
      x0_last_ = at::Tensor();
      order_ = 0;
    }
    const at::Tensor start = index > 0 ? corrected(index, x0) : latents;
    x0_before_ = x0_last_;
    x0_last_ = x0;
    // Order 1 while there is no history, and for the last step, whose h is infinite.
    order_ = std::min<int64_t>({2, steps - index, order_ + 1});
    start_ = start;
    return predicted(index);
  }

 private:
  // The move from sigmas_[from] to sigmas_[from + 1] in half log signal-to-noise ratios (lambda).
  struct Move {
    double scale;      // of the latents
    double alpha_phi;  // alpha_t * (e^-h - 1), of x0 and its differences
    double minus_h;
    double ratio;  // rk: the previous move's length against this one's, negative; 0 without history
  };

  double lambda(int64_t i) const { return std::log(1.0 - sigmas_[i]) - std::log(sigmas_[i]); }

  Move move(int64_t from) const {
    const double h = lambda(from + 1) - lambda(from);
    const double ratio = from > 0 ? (lambda(from - 1) - lambda(from)) / h : 0.0;
    return {sigmas_[from + 1] / sigmas_[from], (1.0 - sigmas_[from + 1]) * std::expm1(-h), -h, ratio};
  }

  // UniP: from start_ at `index` with the x0 predicted there.
  at::Tensor predicted(int64_t index) const {
    const Move m = move(index);
    at::Tensor next = start_ * m.scale - x0_last_ * m.alpha_phi;
    if (order_ == 2) next = next - (x0_before_ - x0_last_) * (0.5 * m.alpha_phi / m.ratio);
    return next;
  }

  // UniC: the latents at `index` again from the previous step's start, now that x0 at `index` is known.
  at::Tensor corrected(int64_t index, const at::Tensor& x0) const {
    const Move m = move(index - 1);
    at::Tensor next = start_ * m.scale - x0_last_ * m.alpha_phi;
    double rho = 0.5;
    if (order_ == 2) {
      // The 2x2 system R rho = b of the paper (eq. 8), R = [[1, 1], [ratio, 1]].
      const double phi = std::expm1(m.minus_h), phi_2 = phi / m.minus_h - 1.0, phi_3 = phi_2 / m.minus_h - 0.5;
      const double b_1 = phi_2 / phi, b_2 = 2.0 * phi_3 / phi;
      const double rho_before = (b_1 - b_2) / (1.0 - m.ratio);
      rho = b_1 - rho_before;
      next = next - (x0_before_ - x0_last_) * (rho_before * m.alpha_phi / m.ratio);
    }
    return next - (x0 - x0_last_) * (rho * m.alpha_phi);
  }

  std::vector<double> timesteps_, sigmas_;
  at::Tensor start_;                // latents (corrected) that the last prediction began at
  at::Tensor x0_last_, x0_before_;  // x0 predicted at the last step and at the one before
  int64_t order_ = 0;               // of the last prediction
  int64_t next_ = 0;
};

}  // namespace

std::unique_ptr<Scheduler> make_scheduler(const std::string& name, int64_t steps, double shift,
                                          const std::string& schedule) {
  VMOBA_CHECK_INPUT(steps >= 1 && steps <= kTrainTimesteps,
                    "expected 1 to {} sampling steps, found {}; change sample.steps", kTrainTimesteps, steps);
  VMOBA_CHECK_INPUT(std::isfinite(shift) && shift > 0, "expected a shift above 0, found {}; change sample.shift",
                    shift);
  if (name == "euler") return EulerScheduler::between_ends(steps, shift);
  if (name == "even_euler") return EulerScheduler::even(steps, shift);
  VMOBA_CHECK_INPUT(schedule == "wan" || schedule == "diffusers",
                    "expected the schedule 'wan' or 'diffusers', found '{}'; change sample.schedule", schedule);
  // Wan's begins at the last of its 1000 training levels, which it keeps in fp32, and ends at 0; diffusers' goes from 1
  // to the first training level.
  constexpr double kLast = 1.0 - 1.0 / kTrainTimesteps;
  if (name == "unipc" && schedule == "wan") return std::make_unique<UniPcScheduler>(float(kLast), 0.0, steps, shift);
  if (name == "unipc") return std::make_unique<UniPcScheduler>(1.0, 1.0 / kTrainTimesteps, steps, shift);
  throw_input("expected the scheduler 'unipc', 'euler' or 'even_euler', found '{}'; change sample.scheduler", name);
}

}  // namespace vmoba::sample
