#include "train/recompute_budget.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "config/device.h"
#include "core/bytes.h"
#include "core/check.h"
#include "core/log.h"
#include "train/forecast/memory_advice.h"

namespace vmoba::train {
namespace {

// Of the free memory, what a trial keeps; of less than this a trial shows nothing.
constexpr double kTrialShare = 0.5, kLeastTrialBytes = double(1 << 30);

}  // namespace

RecomputeBudget::RecomputeBudget(const model::ModelConfig& config, const attention::AttentionConfig& attention,
                                 dist::Mesh& mesh, at::Device device)
    : config_(config), attention_(attention), mesh_(mesh), device_(device), fixed_(model::recompute_plan(config)) {}

RecomputeBudget::Memory RecomputeBudget::memory() const {
  using c10::CachingAllocator::StatType;
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device_.index());
  const auto& allocated = stats.allocated_bytes[size_t(StatType::AGGREGATE)];
  size_t free = 0, total = 0;
  VMOBA_CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess, "expected the free memory of {}, found an error",
              device_.str());
  const int64_t reach = int64_t(free) + stats.reserved_bytes[size_t(StatType::AGGREGATE)].current;
  return {std::min(reach, device_memory_bytes(device_)), allocated.current, allocated.peak};
}

double RecomputeBudget::free_bytes() const {
  const Memory now = memory();
  // What has been added since, by an optimiser's state of another expert for example, stays.
  const int64_t grown = std::max<int64_t>(0, now.allocated - measured_.allocated);
  const double own = double(usable_bytes(now.available)) - double(measured_.peak + grown) - held_;
  return mesh_.sizes().sequence > 1 ? dist::least_number(mesh_.sequence(), device_, own) : own;
}

double RecomputeBudget::unused_bytes() const {
  const Memory now = memory();
  return double(usable_bytes(now.available)) - double(now.peak);
}

void RecomputeBudget::begin_step() {
  step_tokens_ = 0;
  kept_ = false;
  tried_ = 0;
  if (fits_memory()) c10::cuda::CUDACachingAllocator::resetPeakStats(device_.index());
}

const model::RecomputePlan& RecomputeBudget::plan(const attention::Grid& grid, int64_t samples, int64_t text_tokens) {
  const int64_t tokens = grid.tokens() * samples;
  // Whole blocks would keep gathered weights, or weights and inputs that wait in the host's memory, on the device.
  const bool weights_stay = mesh_.sizes().state_ranks() == 1 || held_ > 0;
  const model::PassShape pass{double(samples), 1.0 / double(mesh_.sizes().sequence), text_tokens,
                              /*whole_blocks=*/weights_stay && config_.offload == model::Offload::kNone};
  if (tokens > step_tokens_) step_tokens_ = tokens, step_grid_ = grid, step_pass_ = pass;
  if (!fits_memory() || tokens > measured_tokens_) return fixed_;
  kept_ = true;
  const std::tuple key(grid.t, grid.h, grid.w, samples, text_tokens);
  if (const auto found = fitted_.find(key); found != fitted_.end()) return found->second;
  const double free = free_bytes();
  const bool trial = taken_per_counted_ == 0;
  const model::FittedPlan fitted =
      model::fit_plan(config_, attention_, grid, pass, trial ? kTrialShare * free : free / taken_per_counted_);
  log_info("recompute: for {}x{}x{} tokens backward keeps {}: {:.1f} of {:.1f} GiB that were free{}", grid.t, grid.h,
           grid.w, fitted.plan.describe(), gib(fitted.bytes), gib(std::max(0.0, free)),
           trial ? ", for one step that shows what that takes" : "");
  if (trial) tried_ = std::max(tried_, fitted.bytes);
  return fitted_[key] = fitted.plan;
}

double RecomputeBudget::wanted_bytes() const {
  if (!fits_memory() || step_tokens_ == 0) return 0;
  return model::result_bytes(config_, attention_, step_grid_, step_pass_);
}

double RecomputeBudget::bytes_taken_per_counted() const {
  if (tried_ < kLeastTrialBytes) return 1;
  const double taken = double(memory().peak - measured_.peak) - held_;
  const double counted = std::min(1.0, tried_ / std::max(taken, 1.0));
  return 1 / (mesh_.sizes().sequence > 1 ? dist::least_number(mesh_.sequence(), device_, counted) : counted);
}

void RecomputeBudget::end_step() {
  steps_ += 1;
  if (fits_memory() && kept_ && taken_per_counted_ == 0) {  // a trial, also one in which nothing fitted
    taken_per_counted_ = bytes_taken_per_counted();
    fitted_.clear();
  }
  if (!fits_memory() || kept_ || steps_ < 2 || step_tokens_ <= measured_tokens_) return;
  measured_tokens_ = step_tokens_;
  measured_ = memory();
  measured_.peak -= int64_t(held_);
  fitted_.clear();
}

bool RecomputeBudget::give_up() {
  const bool kept = fits_memory() && kept_;
  gave_up_ |= kept;
  return kept;
}

}  // namespace vmoba::train
