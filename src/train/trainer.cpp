#include "train/trainer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include <fmt/ranges.h>

#include "config/clip_geometry.h"
#include "config/device.h"
#include "config/run_plan.h"
#include "core/bytes.h"
#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"
#include "core/storage.h"
#include "train/agreement.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/failed_clips.h"
#include "train/forecast/device_rate.h"
#include "train/forecast/estimate.h"
#include "train/forecast/offload_choice.h"
#include "train/optim/lr_schedule.h"
#include "train/report/step_profile.h"
#include "train/run_start.h"
#include "train/validation/validation_videos.h"

namespace vmoba::train {
namespace {

using Clock = std::chrono::steady_clock;

double norm_of(const std::vector<double>& norms) {
  double norm = 0;
  for (const double one : norms) norm = std::hypot(norm, one);
  return norm;
}

}  // namespace

Trainer::Trainer(const RootConfig& config, dist::World& world)
    : config_(require_same_config(world, config)),
      grace_(config.run.grace_s),
      world_(world),
      starting_(std::in_place, world, config.parallel.start_timeout_s, dist::Patience::Of::kStart),
      device_(dist::device_of_rank(prepare_device(config.run, world.local_size()), world)),
      mesh_(world, config.parallel, device_),
      share_(dist::batch_share(config.train, mesh_.sizes())),
      peak_flops_per_s_(peak_flops_per_s(device_)),
      loss_watch_(config.train.rewind.factor),
      saver_(config_, world, grace_, callbacks_, [this] { return parts(); }),
      stragglers_(config.parallel.report_every, world.hosts()) {
  limit_gpu_memory(config_.run, device_);
  const auto limit = time_limit(config_.run.save_before, std::chrono::system_clock::now());
  if (limit) set_stop_time(*limit - std::chrono::milliseconds(int64_t(1e3 * config_.run.grace_s)));
  dist::check_sequence(config_);
  validate_training(config_);
  check_device(config_, device_);
  check_validation(config_);
  world_.set_timeout_s(config_.parallel.timeout_s);
  dist::log_rank(world_, mesh_, share_, device_);
  if (world_.rank() != 0 && config_.run.log_level != "debug") set_log_level(LogLevel::kWarning);
  world_.note(0, "planning, listing the files");
  RunPlan plan = plan_run(config_, [this](int64_t done, int64_t files) {
    world_.note(0, fmt::format("planning, {} of {} files", done, files));
  });
  data::check_failures(config_.data, plan.training);
  epochs_ = epochs_of(config_.train, plan.training);
  take_epochs(config_.train, epochs_);
  const data::ClipPlan all = plan.all();
  plan_ = std::move(plan.training);
  held_out_plan_ = std::move(plan.held_out);
  world_.note(0, "comparing the clips");
  record_ = make_record();
  world_.note(0, "loading the encoders");
  open_cache(all);
  world_.note(0, "loading the model");
  experts_ = make_experts(config_, device_, mesh_, decide_offload());
  if (mesh_.sizes().sequence > 1) sequence_ = dist::make_ulysses(mesh_.sequence());
  step_ = std::make_unique<TrainingStep>(config_, world_, mesh_, share_, device_, experts_, sequence_.get());
  state_.seed = uint64_t(config_.seed);
}

Trainer::~Trainer() = default;

int64_t Trainer::decide_offload() {
  if (config_.model.offload == model::Offload::kNone) return 0;
  const attention::Grid grid = largest_grid(clip_geometry(config_), plan_.buckets);
  const int64_t gpu_bytes = device_memory_bytes(device_);
  if (config_.model.offload == model::Offload::kAuto) {
    const OffloadChoice choice = choose_offload(config_, mesh_.sizes(), grid, share_.micro, gpu_bytes);
    log_info("{}", choice.reason);
    config_.model.offload = choice.offload;
  }
  const int64_t resident = resident_weights(config_, mesh_.sizes(), grid, share_.micro, gpu_bytes);
  if (resident > 0)
    log_info("model.offload: up to {:.1f} GiB of blocks stay on the GPU, which would wait for them", gib(resident));
  return resident;
}

void Trainer::check_finite(const dist::StepTotals& totals, double norm) {
  if (std::isfinite(totals.loss) && std::isfinite(norm)) return;
  saver_.end(state_.step);  // the checkpoint to resume from
  // The rank that met it knows the clips; the others leave the word to it.
  if (totals.bad_loss_rank >= 0 && totals.bad_loss_rank != world_.rank()) dist::barrier(world_.control());
  throw_runtime(
      "step {}: expected a finite loss and gradient, found loss {} and gradient norm {}; samples {} of clips "
      "{}; the weights were not updated: lower train.optimizer.lr, look at these clips, or resume from the "
      "last checkpoint",
      state_.step + 1, totals.loss, norm, fmt::join(step_->inputs().samples, ", "),
      fmt::join(step_->inputs().clips, ", "));
}

dist::StepResult Trainer::step_result(const TrainingStep::Numbers& numbers) const {
  dist::StepResult result;
  result.losses = numbers.losses;
  const attention::AttentionStats::Sums& attended = numbers.attended;
  result.pairs = attended.by_partition;
  result.heads = config_.model.heads;
  result.pairs_by_head.resize(size_t(model::layer_count(config_.model) * config_.model.heads));
  for (const auto& [place, pairs] : attended.by_head)
    result.pairs_by_head[size_t(place.first * config_.model.heads + place.second)] = pairs;
  result.signal = stop_signal();
  result.given_up = step_->given_up();
  result.tokens = step_->tokens();
  result.flops = step_->flops(attended);
  result.failed_clips = stream_->stats().failed_clips;
  result.memory_bytes = memory_in_use_bytes(device_);
  result.writing = saver_.progress() == CheckpointWriter::Progress::kWriting;
  result.write_failed = saver_.progress() == CheckpointWriter::Progress::kFailed;
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
  report.density_by_layer = totals.density_by_layer;
  report.samples = state_.next_sample;
  report.ranks = world_.size();
  report.data_wait_s = totals.data_wait_s;
  report.memory_bytes = totals.memory_bytes;
  report.failed_clips = failed_files_;
  return report;
}

std::optional<StepReport> Trainer::train_step() {
  const Clock::time_point start = Clock::now();
  const double data_before = micro_batches_->waited_s(), others_before = world_.waited_s();
  if (!step_->compute({state_.step, state_.next_sample, step_s_}, *micro_batches_)) {
    stop_signal_ = agreed_signal();
    if (world_.size() > 1) gather_failures();
    return std::nullopt;
  }
  const double lr = learning_rate(config_.train.optimizer, state_.step, config_.train.steps);
  // The device updates while the host waits for its numbers, unless these may call for going back.
  const bool ahead = config_.train.rewind.times == 0 && !step_->anyone_gave_up();
  if (ahead) step_->update(lr);
  const TrainingStep::Numbers numbers = step_->numbers();
  dist::StepResult result = step_result(numbers);
  result.data_wait_s = micro_batches_->waited_s() - data_before;
  result.own_s = seconds_since(start) - result.data_wait_s - (world_.waited_s() - others_before);
  world_.note(state_.step + 1, "ending the step");
  const dist::StepTotals totals = dist::exchange_step(world_, mesh_.sizes(), result);
  stop_signal_ = totals.signal;
  if (totals.failed_clips != known_failures_ || totals.given_up) gather_failures();
  known_failures_ = totals.failed_clips;
  if (totals.given_up) return std::nullopt;
  const double norm = norm_of(numbers.norms);
  const bool spike = loss_watch_.is_spike(totals.loss, norm);
  rewound_ = spike && rewind(totals.loss);
  if (rewound_) return std::nullopt;
  check_finite(totals, norm);
  loss_watch_.add(totals.loss);
  if (!ahead) step_->update(lr);
  state_.step += 1;
  if (!spike) sane_step_ = state_.step;
  state_.next_sample += config_.train.global_batch;
  save_written_ = saver_.under_way() && (!totals.writing || totals.write_failed);
  if (totals.write_failed) saver_.give_up();
  if (const std::string text = stragglers_.add(totals); !text.empty() && world_.rank() == 0) log_info("{}", text);

  StepReport out = report(totals, numbers.norms, lr);
  out.step_s = step_s_ = seconds_since(start);
  out.tokens_per_s = double(totals.tokens) / out.step_s;
  if (peak_flops_per_s_ > 0) out.mfu = totals.flops / (out.step_s * peak_flops_per_s_ * double(world_.size()));
  return out;
}

std::optional<StepReport> Trainer::profiled_step() {
  StepProfile profile(device_);
  const std::optional<StepReport> out = train_step();
  {
    const dist::Patience patience(world_);
    without_ending_the_run(
        [&] { profile.save(fmt::format("{}/profile-{}-rank{}.json", config_.run.dir, state_.step, world_.rank())); });
    dist::barrier(world_.control());
  }
  if (world_.rank() == 0)
    log_info("profile of step {} written to {}/profile-{}-rank*.json; open it in ui.perfetto.dev", state_.step,
             config_.run.dir, state_.step);
  return out;
}

void Trainer::gather_failures() {
  FailedClips found = gather_failed_clips(world_.control(), plan_, config_.data, stream_->failures(), step_->no_data(),
                                          state_.next_sample);
  state_.failed_clips = std::move(found.to_repeat);
  failed_files_ = found.files;
  failure_ = found.refusal;
}

void Trainer::check_before_saving() {
  if (lock_) lock_->check();
  const dist::Patience patience(world_);
  require_same_copies(world_, mesh_.sizes(), experts_, /*frozen=*/false, state_.step);
}

int Trainer::agreed_signal() {
  double signal = 0;
  for (const double one : dist::all_gather_numbers(world_.control(), {double(stop_signal())}))
    signal = std::max(signal, one);
  return int(signal);
}

HeldOutReport Trainer::held_out_loss() {
  world_.note(state_.step, "computing the held-out loss");
  const dist::Patience patience(world_);
  const attention::Stage stage = attention::training_stage(config_.attention, std::max<int64_t>(state_.step, 1) - 1);
  HeldOutReport out = held_out_->compute(experts_, stage, sequence_.get());  // as the step before it
  if (world_.rank() == 0) log_info("step {}: held-out loss {:.5f}", state_.step, out.loss);
  return out;
}

void Trainer::validate_now() {
  world_.note(state_.step, "validating");
  // Where ranks hold the model together, all compute the same videos.
  const bool lead = world_.rank() == 0, together = experts_.front().shards != nullptr;
  if (lead || together) {
    const dist::Patience patience(world_);
    const auto on_sampling = [&](const std::string& what) {
      set_status_line(lead && terminal_columns() > 0 ? what : "");
      if ((together ? agreed_signal() : stop_signal()) != 0) throw Stopped();
    };
    try {
      const std::vector<ValidationVideo> videos = make_validation_videos(
          {config_, plan_, experts_, *codec_, *text_, image_.get(), device_, on_sampling}, state_.step, /*write=*/lead);
      callbacks_.on_validation(state_.step, videos);
    } catch (const Stopped&) {
      if (lead) log_info("step {}: the validation is given up", state_.step);
    } catch (const StorageError& e) {
      if (together) throw;
      log_warning("step {}: no validation videos: {}", state_.step, e.what());
    }
    set_status_line("");
    if (cache_ && cache_->coverage().complete()) {  // training itself needs neither
      codec_->release();
      text_->release();
    }
  }
  dist::wait_patiently(world_);
  stop_signal_ = agreed_signal();
}

int Trainer::run(const ResumeRequest& resume) {
  install_stop_signals();
  if (!start(resume)) return 0;
  const bool lead = world_.rank() == 0;
  const int64_t first_step = state_.step, warmup = config_.attention.dense_warmup_steps;
  if (lead && config_.attention.backend != "full" && state_.step < warmup)
    log_info("full attention in every layer until step {} (attention.dense_warmup_steps)", warmup);
  while (state_.step < config_.train.steps && stop_signal_ == 0 && failure_.empty()) {
    std::optional<StepReport> report;
    try {
      report = state_.step + 1 == config_.run.profile_step ? profiled_step() : train_step();
    } catch (const Stopped&) {
      stop_signal_ = stop_signal();
    } catch (const data::NoUsableClip& e) {
      failure_ = e.what();
    }
    if (rewound_) continue;
    if (!report) break;
    const auto due = [&](int64_t every) { return every > 0 && state_.step % every == 0; };
    if (held_out_ && stop_signal_ == 0 && (due(config_.validation.every) || state_.step == config_.train.steps))
      report->held_out = held_out_loss();
    callbacks_.on_step(*report);
    if (lead && config_.attention.backend != "full" && state_.step == warmup)
      log_info("step {}: VMoBA starts (attention.dense_warmup_steps is over)", state_.step + 1);
    if (save_written_) saver_.end(state_.step);
    if (saver_.due(state_.step) || state_.step == config_.train.steps) {
      check_before_saving();
      saver_.begin(state_);
    }
    const bool epoch_ends = epochs_.end_in(state_.step, config_.train.validate_every_epochs);
    if ((due(config_.train.validate_every) || epoch_ends) && stop_signal_ == 0) validate_now();
  }
  return finish(first_step);
}

int Trainer::finish(int64_t first_step) {
  saver_.end(state_.step);
  const bool lead = world_.rank() == 0, stopped = state_.step < config_.train.steps;
  const bool unsaved = saver_.saved_step() != state_.step || checkpoint_steps(config_.run.dir).empty();
  // Hosts may see the folder of another moment: the first rank's word counts.
  if (dist::all_gather_numbers(world_.control(), {double(unsaved)}).front() != 0 &&
      (stopped || state_.step > first_step)) {
    check_before_saving();
    saver_.save_last(state_);
  }
  callbacks_.on_end();
  if (!failure_.empty() && !lead) dist::barrier(world_.control());  // until the first rank has said why
  if (!failure_.empty())
    throw_input("{}\nthe state of step {} is saved: mend the storage or the files and continue with --resume latest",
                failure_, state_.step);
  if (!stopped) return 0;
  grace_.saved(kExitStopped);
  if (lead)
    log_info("stopped by {} after step {}; continue with --resume latest", stop_reason(stop_signal_), state_.step);
  return kExitStopped;
}

}  // namespace vmoba::train
