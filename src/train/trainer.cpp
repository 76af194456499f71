#include "train/trainer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include <fmt/ranges.h>

#include "config/clip_geometry.h"
#include "config/device.h"
#include "core/check.h"
#include "core/log.h"
#include "train/agreement.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/optim/lr_schedule.h"
#include "train/report/step_profile.h"
#include "train/signals.h"
#include "train/validation/validation_videos.h"

namespace vmoba::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

at::ScalarType dtype_of(const std::string& name) {
  return name == "bf16" ? at::kBFloat16 : at::kFloat;
}

// Drops have been reported by plan_clips.
void log_plan(const data::ClipPlan& plan, int64_t micro_batch) {
  log_info("data: {} clips in {} buckets, {} dropped", plan.clips.size(), plan.buckets.size(), plan.dropped.size());
  int64_t clips = 0;
  for (const data::Clip& clip : plan.clips) clips += clip.repeats;
  const int64_t samples = data::SampleOrder(plan, /*seed=*/0, micro_batch).samples_per_epoch();
  if (samples > clips)
    log_info("data: an epoch is {} samples, {} of them shown again to fill micro batches of {} from one bucket",
             samples, samples - clips, micro_batch);
}

double norm_of(const std::vector<double>& norms) {
  double norm = 0;
  for (const double one : norms) norm = std::hypot(norm, one);
  return norm;
}

}  // namespace

Trainer::Trainer(const RootConfig& config, dist::World& world)
    : config_(require_same_config(world, config)),
      world_(world),
      device_(dist::device_of_rank(prepare_device(config.run, world.local_size()), world)),
      mesh_(world, config.parallel, device_),
      share_(dist::batch_share(config.train, mesh_.sizes())),
      compute_dtype_(dtype_of(config.model.compute_dtype)),
      writer_(world.control(), config.run.dir, config.train.keep_checkpoints),
      loss_watch_(config.train.rewind.factor),
      stragglers_(config.parallel.report_every, world.hosts()) {
  dist::check_sequence(config_);
  validate_training(config_);
  world_.set_timeout_s(config_.parallel.timeout_s);
  dist::log_rank(world_, mesh_, share_, device_);
  if (world_.rank() != 0 && config_.run.log_level != "debug") set_log_level(LogLevel::kWarning);
  plan_ = data::plan_clips(config_.data, clip_geometry(config_));
  if (world_.rank() == 0) log_plan(plan_, config_.train.micro_batch);
  record_ = make_record();
  open_cache();
  experts_ = make_experts(config_, device_, mesh_);
  if (mesh_.sizes().sequence > 1) sequence_ = dist::make_ulysses(mesh_.sequence());
  state_.seed = uint64_t(config_.seed);
}

Trainer::~Trainer() = default;

at::Tensor Trainer::accumulate(StepInputs& inputs, int64_t pass, bool dense) {
  world_.note(state_.step + 1, "waiting for data");
  const MicroBatch micro_batch = micro_batches_->next();
  const auto computed = std::find_if(micro_batch.parts.begin(), micro_batch.parts.end(),
                                     [](const MicroBatch::Part& part) { return !part.samples.empty(); });
  inputs.samples.insert(inputs.samples.end(), micro_batch.samples.begin(), micro_batch.samples.end());
  inputs.clips.insert(inputs.clips.end(), micro_batch.clips.begin(), micro_batch.clips.end());
  world_.note(state_.step + 1, "computing");
  at::Tensor loss = at::zeros({}, at::TensorOptions(device_).dtype(at::kDouble));
  for (size_t i = 0; i < experts_.size(); ++i) {
    if (!micro_batch.parts[i].samples.empty())
      loss += accumulate_for(experts_[i], micro_batch.parts[i], dense);
    else if (at_work(i, pass))
      assist(experts_[i], *computed);
  }
  return loss / double(share_.micro);
}

bool Trainer::at_work(size_t expert, int64_t pass) const {
  if (!experts_[expert].shards) return false;
  const dist::MeshSizes& sizes = mesh_.sizes();
  // Consecutive batch ranks, and so consecutive samples.
  const int64_t chunk = pass * sizes.batch_ranks() + mesh_.data_rank() * sizes.shard;
  const int64_t first = state_.next_sample + chunk * share_.micro;
  for (int64_t sample = first; sample < first + sizes.shard * share_.micro; ++sample)
    if (expert_of_sample(config_, sample) == expert) return true;
  return false;
}

at::Tensor Trainer::accumulate_for(Expert& expert, const MicroBatch::Part& part, bool dense) {
  const TrainingBatch& batch = part.batch;
  const at::Tensor& latents = batch.input.latents_BCTHW;
  step_tokens_ += expert.dit->grid(latents.size(2), latents.size(3), latents.size(4)).tokens() * latents.size(0);
  const model::ForwardOptions options{compute_dtype_, dense, model::recompute_policy(config_.model), &stats_,
                                      sequence_.get()};
  const at::Tensor loss = flow_loss(expert.dit->forward(batch.input, options), batch.noisy);
  const auto count = double(part.samples.size());
  (loss / (double(config_.train.global_batch) / count)).backward();
  return loss.detach().to(at::kDouble) * count;
}

void Trainer::assist(Expert& expert, const MicroBatch::Part& neighbour) {
  model::DitInput input = neighbour.batch.input;
  const auto& patch = config_.model.patch_size;
  input.latents_BCTHW =
      input.latents_BCTHW.narrow(0, 0, 1).narrow(2, 0, patch[0]).narrow(3, 0, patch[1]).narrow(4, 0, patch[2]);
  input.timestep_BG = input.timestep_BG.view({input.timestep_BG.size(0), -1}).narrow(0, 0, 1).narrow(1, 0, 1);
  input.conditions = model::narrow_samples(input.conditions, 0, 1);
  const model::ForwardOptions options{compute_dtype_, /*dense=*/true, model::recompute_policy(config_.model), nullptr,
                                      sequence_.get()};
  (expert.dit->forward(input, options).sum() * 0).backward();
}

std::vector<at::Tensor> Trainer::run_passes(StepInputs& inputs) {
  const bool dense = state_.step < config_.attention.dense_warmup_steps;
  for (Expert& expert : experts_) expert.begin_gradients();
  // Sums overlap with backward only where all ranks run through the same experts in the same order.
  dist::GradientSums* overlapped = experts_.size() == 1 ? experts_.front().sums.get() : nullptr;
  std::vector<at::Tensor> losses;
  for (int64_t pass = 0; pass < share_.passes; ++pass) {
    const bool last = pass + 1 == share_.passes;
    if (overlapped && last) overlapped->begin_last_pass();
    losses.push_back(accumulate(inputs, pass, dense));
    if (last && state_.step + 1 == config_.train.steps) continue;
    world_.note(state_.step + 1, "waiting for the data of the next pass");
    micro_batches_->prepare();
    world_.note(state_.step + 1, "computing");
  }
  for (size_t i = 0; i < experts_.size(); ++i)
    if (inputs.experts[i]) experts_[i].finish_gradients();
  return losses;
}

Trainer::StepNumbers Trainer::read_numbers(const std::vector<at::Tensor>& losses, const StepInputs& inputs) const {
  std::vector<at::Tensor> values = losses;
  for (size_t i = 0; i < experts_.size(); ++i) {
    const at::Tensor norm = inputs.experts[i] ? experts_[i].gradient_norm() : at::zeros({});
    values.push_back(norm.to(at::TensorOptions(device_).dtype(at::kDouble)));
  }
  const at::Tensor read = at::stack(values).cpu();
  const double* begin = read.const_data_ptr<double>();
  const double* norms = begin + losses.size();
  return {{begin, norms}, {norms, begin + read.numel()}};
}

void Trainer::check_finite(const dist::StepTotals& totals, double norm, const StepInputs& inputs) {
  if (std::isfinite(totals.loss) && std::isfinite(norm)) return;
  if (writer_.under_way()) end_save();  // the checkpoint to resume from
  // The rank that met it knows the clips; the others leave the word to it.
  if (totals.bad_loss_rank >= 0 && totals.bad_loss_rank != world_.rank()) dist::barrier(world_.control());
  throw_runtime(
      "step {}: expected a finite loss and gradient, found loss {} and gradient norm {}; samples {} of clips "
      "{}; the weights were not updated: lower train.optimizer.lr, look at these clips, or resume from the "
      "last checkpoint",
      state_.step + 1, totals.loss, norm, fmt::join(inputs.samples, ", "), fmt::join(inputs.clips, ", "));
}

dist::StepResult Trainer::step_result(const std::vector<double>& losses) const {
  dist::StepResult result;
  result.losses = losses;
  result.pairs = stats_.pairs();
  result.signal = stop_signal();
  result.tokens = step_tokens_;
  result.failed_clips = stream_->stats().failed_clips;
  result.memory_bytes = memory_in_use_bytes(device_);
  result.writing = writer_.progress() == CheckpointWriter::Progress::kWriting;
  result.write_failed = writer_.progress() == CheckpointWriter::Progress::kFailed;
  return result;
}

StepReport Trainer::report(const dist::StepTotals& totals, const std::vector<double>& norms, double lr) const {
  StepReport report;
  report.step = state_.step;
  report.steps = config_.train.steps;
  report.loss = totals.loss;
  report.lr = lr;
  report.grad_norm = norm_of(norms);
  for (size_t i = 0; norms.size() > 1 && i < norms.size(); ++i)
    report.grad_norm_by_expert.emplace_back(expert_name(i, norms.size()), norms[i]);
  report.density = totals.density;
  report.data_wait_s = totals.data_wait_s;
  report.memory_bytes = totals.memory_bytes;
  report.failed_clips = totals.failed_clips;
  return report;
}

StepReport Trainer::train_step() {
  const Clock::time_point start = Clock::now();
  const double data_before = micro_batches_->waited_s(), others_before = world_.waited_s();
  stats_.clear();
  step_tokens_ = 0;
  StepInputs inputs;
  inputs.experts = experts_in_step(config_, state_.next_sample);
  const auto [losses, norms] = read_numbers(run_passes(inputs), inputs);
  dist::StepResult result = step_result(losses);
  result.data_wait_s = micro_batches_->waited_s() - data_before;
  result.own_s = seconds_since(start) - result.data_wait_s - (world_.waited_s() - others_before);
  world_.note(state_.step + 1, "ending the step");
  const dist::StepTotals totals = dist::exchange_step(world_, mesh_.sizes(), result);
  stop_signal_ = totals.signal;
  const bool spike = loss_watch_.is_spike(totals.loss, norm_of(norms));
  rewound_ = spike && rewind(totals.loss);
  if (rewound_) return {};
  check_finite(totals, norm_of(norms), inputs);
  loss_watch_.add(totals.loss);
  const double lr = learning_rate(config_.train.optimizer, state_.step, config_.train.steps);
  for (size_t i = 0; i < experts_.size(); ++i)
    if (inputs.experts[i]) experts_[i].update(lr, norms[i], config_.train.optimizer.max_grad_norm);
  state_.step += 1;
  if (!spike) sane_step_ = state_.step;
  state_.next_sample += config_.train.global_batch;
  save_written_ = !totals.writing || totals.write_failed;
  if (totals.write_failed) writer_.give_up();
  if (const std::string text = stragglers_.add(totals); !text.empty() && world_.rank() == 0) log_info("{}", text);

  StepReport out = report(totals, norms, lr);
  out.step_s = seconds_since(start);
  out.tokens_per_s = double(totals.tokens) / out.step_s;
  return out;
}

StepReport Trainer::profiled_step() {
  StepProfile profile(device_);
  StepReport out = train_step();
  {
    const dist::Patience patience(world_);
    profile.save(fmt::format("{}/profile-{}-rank{}.json", config_.run.dir, state_.step, world_.rank()));
    dist::barrier(world_.control());
  }
  if (world_.rank() == 0)
    log_info("profile of step {} written to {}/profile-{}-rank*.json; open it in ui.perfetto.dev", state_.step,
             config_.run.dir, state_.step);
  return out;
}

void Trainer::save() {
  if (writer_.under_way()) end_save();
  if (lock_) lock_->check();
  const Clock::time_point start = Clock::now();
  world_.note(state_.step, "beginning a checkpoint");
  {
    const dist::Patience patience(world_);
    require_same_copies(world_, mesh_.sizes(), experts_, /*frozen=*/false, state_.step);
    writer_.begin(state_, parts());
  }
  save_stall_s_ = seconds_since(start);
  save_written_ = false;
  if (!config_.train.checkpoint_async) end_save();
}

void Trainer::end_save() {
  const Clock::time_point start = Clock::now();
  world_.note(state_.step, "ending a checkpoint");
  const CheckpointWriter::Saved saved = [this] {
    const dist::Patience patience(world_);
    return writer_.finish();
  }();
  save_stall_s_ += seconds_since(start);
  if (world_.rank() == 0)
    log_info("checkpoint of step {}: training stood still for {:.3f} s", saved.step, save_stall_s_);
  for (const auto& callback : callbacks_) callback->on_checkpoint(saved.step, saved.folder);
}

void Trainer::validate_now() {
  world_.note(state_.step, "validating");
  // Where ranks hold the model together, all compute the same videos.
  const bool lead = world_.rank() == 0;
  if (!lead && !experts_.front().shards) return dist::wait_patiently(world_);
  const dist::Patience patience(world_);
  const std::vector<ValidationVideo> videos = make_validation_videos(
      {config_, plan_, experts_, *codec_, *text_, image_.get(), device_}, state_.step, /*write=*/lead);
  if (cache_ && cache_->coverage().complete()) {  // training itself needs neither
    codec_->release();
    text_->release();
  }
  for (const auto& callback : callbacks_) callback->on_validation(state_.step, videos);
  dist::wait_patiently(world_);
}

int Trainer::run(const ResumeRequest& resume) {
  install_stop_signals();
  if (!start(resume)) return 0;
  const bool lead = world_.rank() == 0;
  const int64_t warmup = config_.attention.dense_warmup_steps;
  if (lead && config_.attention.backend != "full" && state_.step < warmup)
    log_info("full attention in every layer until step {} (attention.dense_warmup_steps)", warmup);
  const auto due = [&](int64_t every) { return every > 0 && state_.step % every == 0; };
  int64_t saved_step = state_.step;
  while (state_.step < config_.train.steps && stop_signal_ == 0) {
    const StepReport report = state_.step + 1 == config_.run.profile_step ? profiled_step() : train_step();
    if (rewound_) continue;
    for (const auto& callback : callbacks_) callback->on_step(report);
    if (lead && config_.attention.backend != "full" && state_.step == warmup)
      log_info("step {}: sparse attention from here on", state_.step + 1);
    if (writer_.under_way() && save_written_) end_save();
    if (due(config_.train.checkpoint_every) || state_.step == config_.train.steps) {
      save();
      saved_step = state_.step;
    }
    if (due(config_.train.validate_every)) validate_now();
  }
  if (writer_.under_way()) end_save();
  const bool stopped = state_.step < config_.train.steps;
  if (stopped && (saved_step != state_.step || checkpoint_steps(config_.run.dir).empty())) {
    save();
    if (writer_.under_way()) end_save();
  }
  for (const auto& callback : callbacks_) callback->on_end();
  if (stopped && lead)
    log_info("stopped by signal {} after step {}; continue with --resume latest", stop_signal_, state_.step);
  return stopped ? kExitStopped : 0;
}

}  // namespace vmoba::train
