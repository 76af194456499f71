#include "train/training_step.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>

#include "core/bytes.h"
#include "core/log.h"
#include "data/dataset.h"
#include "model/common/dtype.h"
#include "train/dist/step_exchange.h"
#include "train/flow_matching.h"
#include "train/forecast/device_rate.h"
#include "train/forecast/memory_advice.h"
#include "train/signals.h"

namespace vmoba::train {

TrainingStep::TrainingStep(const RootConfig& config, dist::World& world, dist::Mesh& mesh,
                           const dist::BatchShare& share, at::Device device, std::vector<Expert>& experts,
                           model::SequenceParallel* sequence)
    : config_(config),
      world_(world),
      mesh_(mesh),
      share_(share),
      device_(device),
      compute_dtype_(model::scalar_type(config.model.compute_dtype)),
      experts_(experts),
      sequence_(sequence),
      budget_(config.model, config.attention, mesh, device) {
  if (model::offloads_activations(config.model.offload)) host_inputs_.emplace(device);
  if (config.parallel.gather == Gather::kOnce) keep_gathered();
}

double TrainingStep::gathered_bytes() const {
  double bytes = 0;
  for (const Expert& expert : experts_)
    if (expert.shards) bytes += double(expert.shards->gathered_bytes(compute_dtype_));
  return bytes;
}

void TrainingStep::keep_gathered() {
  for (Expert& expert : experts_)
    if (expert.shards) expert.shards->keep_gathered(true);
  budget_.hold_weights(gathered_bytes());
}

void TrainingStep::decide_gathers() {
  const bool open = config_.parallel.gather == Gather::kAuto && mesh_.sizes().state_ranks() > 1 && device_.is_cuda();
  if (!open || ++steps_ != 2) return;
  const double bytes = gathered_bytes(), free = dist::least_number(mesh_.state(), device_, budget_.unused_bytes());
  const double results = dist::largest_number(mesh_.state(), device_, budget_.wanted_bytes());
  if (!gathered_weights_stay(bytes, free, results)) return;
  keep_gathered();
  log_info("gathered weights stay within a step (parallel.gather auto): {:.1f} of {:.1f} GiB that were free",
           gib(bytes), gib(free));
}

std::optional<MicroBatch> TrainingStep::next_micro_batch(MicroBatchSource& source) {
  try {
    if (!given_up_) return source.next();
  } catch (const Stopped&) {
    if (world_.size() == 1) throw;
  } catch (const data::NoUsableClip& e) {
    if (world_.size() == 1) throw;
    no_data_ = e.what();
  }
  given_up_ = true;
  return std::nullopt;
}

at::Tensor TrainingStep::accumulate(const std::optional<MicroBatch>& micro_batch, int64_t pass,
                                    const attention::Stage& stage) {
  world_.note(place_.step + 1, "computing");
  at::Tensor loss = at::zeros({}, at::TensorOptions(device_).dtype(at::kDouble));
  if (!micro_batch) {
    for (size_t i = 0; i < experts_.size(); ++i)
      if (experts_.size() == 1 || at_work(i, pass)) assist(experts_[i], *last_part_);
    return loss;
  }
  const auto computed = std::find_if(micro_batch->parts.begin(), micro_batch->parts.end(),
                                     [](const MicroBatch::Part& part) { return !part.samples.empty(); });
  inputs_.samples.insert(inputs_.samples.end(), micro_batch->samples.begin(), micro_batch->samples.end());
  inputs_.clips.insert(inputs_.clips.end(), micro_batch->clips.begin(), micro_batch->clips.end());
  for (size_t i = 0; i < experts_.size(); ++i) {
    if (!micro_batch->parts[i].samples.empty())
      loss += accumulate_for(experts_[i], micro_batch->parts[i], stage);
    else if (at_work(i, pass))
      assist(experts_[i], *computed);
  }
  if (world_.size() > 1) last_part_ = *computed;
  return loss / double(share_.micro);
}

bool TrainingStep::all_need_data() const {
  return world_.size() > 1 && (mesh_.sizes().sequence > 1 || !last_part_);
}

bool TrainingStep::at_work(size_t expert, int64_t pass) const {
  if (!experts_[expert].shards) return false;
  const dist::MeshSizes& sizes = mesh_.sizes();
  // Consecutive batch ranks, and so consecutive samples.
  const int64_t chunk = pass * sizes.batch_ranks() + mesh_.data_rank() * sizes.shard;
  const int64_t first = place_.next_sample + chunk * share_.micro;
  for (int64_t sample = first; sample < first + sizes.shard * share_.micro; ++sample)
    if (expert_of_sample(config_, sample) == expert) return true;
  return false;
}

void TrainingStep::count(const attention::Grid& grid, int64_t text_tokens, int64_t samples) {
  tokens_ += grid.tokens() * samples;
  const auto [known, fresh] = known_work_.try_emplace({grid.t, grid.h, grid.w, text_tokens});
  if (fresh) known->second = sample_work(config_, grid, text_tokens);
  const SampleWork& one = known->second;
  work_.products += double(samples) * one.products;
  work_.other_attention += double(samples) * one.other_attention;
  work_.sparse_attention += double(samples) * one.sparse_attention;
  work_.sparse_layers = one.sparse_layers;
}

at::Tensor TrainingStep::accumulate_for(Expert& expert, const MicroBatch::Part& part, const attention::Stage& stage) {
  const TrainingBatch& batch = part.batch;
  const at::Tensor& latents = batch.input.latents_BCTHW;
  const attention::Grid grid = expert.dit->grid(latents.size(2), latents.size(3), latents.size(4));
  const int64_t text_tokens = batch.input.conditions.text.tokens_BLE.size(1);
  count(grid, text_tokens, latents.size(0));
  model::ForwardOptions options{compute_dtype_, stage.dense, budget_.plan(grid, latents.size(0), text_tokens), &stats_,
                                sequence_};
  options.sparsity = stage.sparsity;
  options.host_inputs = host_inputs_ ? &*host_inputs_ : nullptr;
  const double of_teacher = config_.train.distill.weight;
  const auto count = double(part.samples.size());
  pass_ = {latents.size(0), grid.tokens(), latents.size(2), latents.size(3), latents.size(4)};
  const at::Tensor taught = of_teacher > 0 ? expert.teach(batch.input, options) : at::Tensor();
  const at::Tensor velocity = expert.dit->forward(batch.input, options);
  const at::Tensor loss =
      taught.defined() ? distilled_loss(velocity, batch.noisy, taught, of_teacher) : flow_loss(velocity, batch.noisy);
  (loss / (double(config_.train.global_batch) / count)).backward();
  return loss.detach().to(at::kDouble) * count;
}

void TrainingStep::assist(Expert& expert, const MicroBatch::Part& neighbour) {
  model::DitInput input = neighbour.batch.input;
  const auto& patch = config_.model.patch_size;
  input.latents_BCTHW =
      input.latents_BCTHW.narrow(0, 0, 1).narrow(2, 0, patch[0]).narrow(3, 0, patch[1]).narrow(4, 0, patch[2]);
  input.timestep_BG = input.timestep_BG.view({input.timestep_BG.size(0), -1}).narrow(0, 0, 1).narrow(1, 0, 1);
  input.conditions = model::narrow_samples(input.conditions, 0, 1);
  const model::ForwardOptions options{compute_dtype_, /*dense=*/true, model::recompute_plan(config_.model), nullptr,
                                      sequence_};
  if (config_.train.distill.weight > 0) expert.teach(input, options);
  (expert.dit->forward(input, options).sum() * 0).backward();
}

bool TrainingStep::too_late_for(int64_t passes) const {
  if (stop_signal() == 0) return false;
  return double(passes) * place_.last_step_s / double(share_.passes) > config_.run.grace_s / 2 - seconds_since_stop();
}

void TrainingStep::forget_passes() {
  stats_.clear();
  tokens_ = 0;
  work_ = {};
  inputs_.samples.clear();
  inputs_.clips.clear();
}

std::optional<TrainingStep::Losses> TrainingStep::run_passes(MicroBatchSource& source) {
  std::vector<std::optional<MicroBatch>> taken;
  budget_.begin_step();
  try {
    return try_passes(source, taken);
  } catch (const c10::OutOfMemoryError& error) {
    // Other ranks wait for this one's part of the step: they cannot begin it again.
    if (world_.size() > 1 || !budget_.give_up()) {
      log_warning("step {}: GPU memory: expected room for a pass of {}{}, found none; try in this order: {}",
                  place_.step + 1, pass_text(config_, pass_),
                  inputs_.clips.empty() ? "" : " ('" + inputs_.clips.back() + "')", memory_keys(config_));
      throw;
    }
    log_warning(
        "step {}: the GPU's memory did not suffice for what backward was to keep (model.recompute auto); from "
        "here on it computes blocks again, as with `block`",
        place_.step + 1);
  }
  c10::cuda::CUDACachingAllocator::emptyCache();
  forget_passes();
  return try_passes(source, taken);
}

std::optional<TrainingStep::Losses> TrainingStep::try_passes(MicroBatchSource& source,
                                                             std::vector<std::optional<MicroBatch>>& taken) {
  const attention::Stage stage = attention::training_stage(config_.attention, place_.step);
  for (Expert& expert : experts_) expert.begin_gradients();
  // Sums overlap with backward only where all ranks run through the same experts in the same order.
  dist::GradientSums* overlapped = experts_.size() == 1 ? experts_.front().sums.get() : nullptr;
  Losses losses;
  for (int64_t pass = 0; pass < share_.passes; ++pass) {
    const bool last = pass + 1 == share_.passes, together = all_need_data();
    std::optional<dist::Vote> vote;  // the ranks learn of each other's wish while they compute
    if (!last && !together) vote.emplace(world_.control(), too_late_for(share_.passes - pass));
    if (pass == int64_t(taken.size())) {
      world_.note(place_.step + 1, "waiting for data");
      taken.push_back(next_micro_batch(source));
    }
    const bool no_way = given_up_ || (!last && too_late_for(share_.passes - pass));
    if (together && dist::Vote(world_.control(), no_way).any()) return std::nullopt;
    if (overlapped && last) overlapped->begin_last_pass();
    losses.push_back(accumulate(taken[size_t(pass)], pass, stage));
    if (world_.size() > 1 || !budget_.can_give_up()) taken[size_t(pass)].reset();  // nobody computes it again
    if (vote && (vote->any() || (world_.size() == 1 && too_late_for(share_.passes - pass - 1)))) return std::nullopt;
    if ((last && place_.step + 1 == config_.train.steps) || given_up_) continue;
    world_.note(place_.step + 1, "waiting for the data of the next pass");
    source.prepare();
    world_.note(place_.step + 1, "computing");
  }
  for (size_t i = 0; i < experts_.size(); ++i)
    if (inputs_.experts[i]) experts_[i].finish_gradients();
  return losses;
}

bool TrainingStep::compute(const Place& place, MicroBatchSource& source) {
  place_ = place;
  forget_passes();
  inputs_.experts = experts_in_step(config_, place.next_sample);
  const auto losses = run_passes(source);
  for (Expert& expert : experts_) expert.drop_gathered();
  if (losses) send_numbers(*losses);
  return losses.has_value();
}

void TrainingStep::send_numbers(const Losses& losses) {
  const at::NoGradGuard no_grad;
  passes_ = losses.size();
  norms_.clear();
  std::vector<at::Tensor> values = losses;
  const auto options = at::TensorOptions(device_).dtype(at::kDouble);
  for (size_t i = 0; i < experts_.size(); ++i) {
    norms_.push_back(inputs_.experts[i] ? experts_[i].gradient_norm() : at::zeros({}, options));
    values.push_back(norms_.back().to(options));
  }
  const at::Tensor own = at::stack(values);
  skip_ = at::isfinite(own).all().logical_not().to(at::kFloat);
  numbers_ = HostNumbers(at::cat({own, stats_.recorded().to(options)}));
}

bool TrainingStep::anyone_gave_up() {
  return dist::Vote(world_.control(), given_up_).any();
}

void TrainingStep::update(double lr) {
  for (size_t i = 0; i < experts_.size(); ++i)
    if (inputs_.experts[i]) experts_[i].update(lr, norms_[i], config_.train.optimizer.max_grad_norm, skip_);
  budget_.end_step();
  decide_gathers();
}

TrainingStep::Numbers TrainingStep::numbers() {
  const double* values = numbers_.wait().const_data_ptr<double>();
  const double *norms = values + passes_, *attended = norms + norms_.size();
  return {{values, norms}, {norms, attended}, stats_.sums(attended)};
}

double TrainingStep::density(const attention::AttentionStats::Sums& attended) const {
  double pairs = 0, all = 0;
  for (const auto& [name, sum] : attended.by_partition) {
    pairs += sum.first;
    all += sum.second;
  }
  return all > 0 ? pairs / all : 1;
}

double TrainingStep::flops(const attention::AttentionStats::Sums& attended) const {
  return work_.flops(density(attended));
}

double TrainingStep::least_seconds(const attention::AttentionStats::Sums& attended, double peak) const {
  return train::least_seconds(work_, density(attended), peak);
}

}  // namespace vmoba::train
