// How a run begins and goes back: what it starts from, its folder, the stream from the sample that comes next.
#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "config/run_plan.h"
#include "core/check.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/storage.h"
#include "train/agreement.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/lora_metadata.h"
#include "train/report/metrics_writer.h"
#include "train/report/standard_callbacks.h"
#include "train/run_start.h"
#include "train/trainer.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRewind = "rewind";  // as a change of the run

std::string resolved_yaml(RootConfig config) {
  return config_to_yaml([&](ConfigVisitor& v) { config.visit(v); });
}

}  // namespace

RunRecord Trainer::make_record() {
  const dist::Patience patience(world_);
  const data::ClipPlan all = RunPlan{plan_, held_out_plan_}.all();
  const Facts clips = clip_facts(all, config_.data.path), sizes = clip_file_facts(all, FileFact::kBytes),
              samples = clip_file_facts(all, FileFact::kSample);
  for (const Facts* facts : {&clips, &sizes, &samples})
    require_same_facts(world_, *facts, "give every host the same files at data.path");
  RunRecord out;
  out.version = program_version();
  const std::string plan = clips_hash(clips);
  out.clip_plan = plan + kFilesMark + clips_hash(sizes) + kFilesMark + clips_hash(samples);
  out.clips = int64_t(clips.size());
  const std::string drawn = dist::all_gather_text(world_.control(), world_.rank() == 0 ? drawn_id() : "").front();
  out.run = hash_text(content_hash(run_identity(config_) + plan)) + "-" + drawn;
  return out;
}

void Trainer::open_cache(const data::ClipPlan& plan) {
  cache_ = open_encode_cache(config_, plan);
  codec_ = std::make_unique<LazyCodec>(config_.codec, device_);
  text_ = std::make_unique<CachedTextEncoder>(config_, device_, cache_.get());
  if (config_.model.image_dim > 0) image_ = make_lazy_image_encoder(config_.image_encoder, device_);
  if (cache_ && cache_->coverage().complete()) return;
  require_same_encoders(world_, config_);
  load_encoders();
}

// Before the first step, so that what is wrong with them is said at the start.
void Trainer::load_encoders() {
  codec_->load();
  text_->load();
  if (image_) image_->load();
}

CheckpointParts Trainer::parts() {
  return {experts_,
          resolved_yaml(config_),
          config_.lora,
          &model::architecture_of(config_.model),
          record_,
          config_.lora.enabled() ? lora_metadata(config_, plan_, epochs_, state_.step)
                                 : std::map<std::string, std::string>{}};
}

void Trainer::lock_folder() {
  const std::string& dir = config_.run.dir;
  lock_ = std::make_unique<FolderLock>(dir + "/run.lock", fmt::format("run.dir '{}'", dir), "choose another run.dir");
}

void Trainer::set_aside_other_run() {
  const std::string& dir = config_.run.dir;
  const auto place = set_aside_earlier_run(dir);
  if (!place) return;
  if (lock_) lock_->follow(*place + "/run.lock");
  lock_.reset();
  log_warning("{} holds an earlier run; now kept at {}. To continue it: run.dir={} --resume latest", dir, *place,
              *place);
}

void Trainer::set_aside_other_branch(const std::string& checkpoint) {
  const std::string& dir = config_.run.dir;
  const fs::path place = fs::weakly_canonical(fs::path(checkpoint) / "..");
  // From a branch that was set aside before, nothing of the branch that took its place goes on.
  const bool same_branch = place == fs::weakly_canonical(dir);
  const auto aside = set_aside_later_checkpoints(dir, same_branch ? state_.step : -1);
  if (aside) log_warning("going back to step {}: the other checkpoints of {} are kept in {}", state_.step, dir, *aside);
  if (!same_branch && fs::exists(place / "metrics.jsonl"))
    write_file_atomically(dir + "/metrics.jsonl",
                          read_file((place / "metrics.jsonl").string(), int64_t(4) << 30, "a run's metrics"));
  std::erase_if(folder_.starts, [&](int64_t step) { return step > state_.step; });
  if (aside && same_branch) folder_.starts.insert(state_.step);
}

void Trainer::prepare_folder(const std::string& checkpoint) {
  const std::string& dir = config_.run.dir;
  const std::string inside = fs::weakly_canonical(dir).string() + "/";
  const bool foreign = !checkpoint.empty() && !fs::weakly_canonical(checkpoint).string().starts_with(inside);
  if (foreign) set_aside_other_run();
  prepare_run_folder(dir);
  if (!lock_) lock_folder();
  folder_ = read_run_folder(dir);
  if (!checkpoint.empty() && !foreign) set_aside_other_branch(checkpoint);
  write_run_folder(dir, folder_);
  record_.folder = folder_.id;
  Rotation rotation = config_.train.keep_checkpoints;
  rotation.every = config_.train.keep_every;
  rotation.folder = folder_.id;
  rotation.also = [this] { return lasting_checkpoints(); };
  saver_.set_rotation(rotation);
  write_file_atomically(dir + "/config.resolved.yaml", resolved_yaml(config_));
  write_file_atomically(dir + "/clip_plan.json", data::plan_to_json(RunPlan{plan_, held_out_plan_}.all()));
  say_start();
  callbacks_ = Callbacks(standard_callbacks(config_, plan_, state_.step));
}

// The newest after which a step ended well: until one did, a checkpoint may hold what has just gone wrong. -1: none.
int64_t Trainer::proven_checkpoint() const {
  int64_t proven = -1;
  for (const int64_t step : checkpoint_steps(config_.run.dir))
    if (step < sane_step_) proven = step;
  return proven;
}

// Where a branch began, where this process began, the proven one, and the best by validation loss.
std::set<int64_t> Trainer::lasting_checkpoints() const {
  std::set<int64_t> out = folder_.starts;
  out.insert(record_.parent_step);
  out.insert(proven_checkpoint());
  if (config_.train.keep_best == 0) return out;
  std::vector<std::pair<double, int64_t>> ranked;
  const std::vector<int64_t> there = checkpoint_steps(config_.run.dir);
  for (const auto& [step, loss] : read_metric(config_.run.dir + "/metrics.jsonl", "val_loss"))
    if (std::binary_search(there.begin(), there.end(), step)) ranked.emplace_back(loss, step);
  std::sort(ranked.begin(), ranked.end());
  for (size_t i = 0; i < ranked.size() && int64_t(i) < config_.train.keep_best; ++i) out.insert(ranked[i].second);
  return out;
}

void Trainer::load(const std::string& checkpoint) {
  const Manifest manifest = read_manifest(checkpoint);
  const RunRecord now = record_;
  const std::vector<ConfigChange> changes = allowed_changes(checkpoint, manifest, config_, now);
  state_ = load_verified_checkpoint(checkpoint, parts());
  VMOBA_CHECK_INPUT(state_.next_sample - state_.skipped_samples == state_.step * config_.train.global_batch,
                    "train.global_batch: expected {} as in the checkpoint, found {}; a resumed run keeps its batch",
                    state_.step ? (state_.next_sample - state_.skipped_samples) / state_.step : 0,
                    config_.train.global_batch);
  record_.changes = manifest.record.changes;
  record_.changes.insert(record_.changes.end(), changes.begin(), changes.end());
  if (!manifest.record.run.empty()) record_.run = manifest.record.run;
  record_.parent_step = state_.step;
  sane_step_ = state_.step;
  if (world_.rank() != 0) return;
  if (const std::string text = changes_text(checkpoint, changes); !text.empty()) log_warning("{}", text);
  log_info("resumed from {} at step {}", checkpoint, state_.step);
}

bool Trainer::is_over(const std::string& checkpoint) const {
  if (checkpoint.empty() || state_.step < config_.train.steps) return false;
  if (state_.step == config_.train.steps)
    log_info("the run is finished: {} is at step {}, all of train.steps; raise train.steps to go on", checkpoint,
             state_.step);
  else
    log_warning("train.steps: {} lies below step {} of {}: nothing is left to train; raise train.steps to go on",
                config_.train.steps, state_.step, checkpoint);
  // Elsewhere, or before checkpoints that are there, nothing may be changed.
  const std::vector<int64_t> steps = checkpoint_steps(config_.run.dir);
  return steps.empty() || steps.back() != state_.step;
}

void Trainer::say_start() {
  const RunStart start{config_,          plan_, device_, mesh_.sizes(), share_.micro, saver_.checkpoint_bytes(),
                       world_.launcher()};
  for (const std::string& line : start_lines(start)) log_info("{}", line);
  for (const std::string& line : start_warnings(start)) log_warning("{}", line);
  check_room(start);
}

// Pass p of batch rank b takes chunk p * batch_ranks + b of the step.
void Trainer::make_stream() {
  std::erase_if(state_.failed_clips,
                [this](const data::ClipFailure& known) { return known.clip >= int64_t(plan_.clips.size()); });
  stream_ = std::make_unique<data::SampleStream>(plan_, config_.data, uint64_t(config_.seed), config_.train.micro_batch,
                                                 state_.next_sample + mesh_.batch_rank() * share_.micro,
                                                 mesh_.sizes().batch_ranks() * share_.micro, share_.micro, cache_.get(),
                                                 state_.failed_clips);
  // A moment for data that is about to come; none for storage that does not answer.
  const auto give_up = [this] {
    return stop_signal() != 0 && (storage_waits() > 0 || seconds_since_stop() > config_.run.grace_s / 4);
  };
  micro_batches_ = std::make_unique<MicroBatches>(config_, plan_, *stream_, *codec_, *text_, image_.get(), share_.micro,
                                                  device_, give_up);
}

bool Trainer::start(const ResumeRequest& resume) {
  require_same_facts(world_, {{"--resume", resume.from}}, "start every rank with one command");
  if (world_.rank() == 0 && fs::is_directory(config_.run.dir)) {
    lock_folder();
    if (resume.from.empty()) set_aside_other_run();
  }
  const std::string from = find_checkpoint(world_, config_.run.dir, resume);
  if (config_.lora.enabled()) record_.base = base_hash(world_, mesh_.sizes(), experts_);
  if (!from.empty()) load(from);
  check_finite_weights(experts_, from.empty() ? "model.weights" : from);
  require_same_copies(world_, mesh_.sizes(), experts_, /*frozen=*/true, state_.step);
  const bool over = world_.rank() == 0 && is_over(from);
  if (!dist::all_gather_text(world_.control(), over ? "over" : "").front().empty()) return false;
  if (world_.rank() == 0) prepare_folder(from);
  make_stream();
  if (!held_out_plan_.clips.empty())
    held_out_ = std::make_unique<HeldOutLoss>(HeldOutEncoder{config_, held_out_plan_, *codec_, *text_, image_.get(),
                                                             device_, cache_.get(), int64_t(plan_.clips.size())},
                                              mesh_, world_);
  saver_.start(state_.step, epochs_);
  dist::barrier(world_.control());
  starting_.reset();
  return true;
}

bool Trainer::rewind(double loss) {
  const auto done = std::count_if(record_.changes.begin(), record_.changes.end(),
                                  [](const ConfigChange& change) { return change.key == kRewind; });
  if (done >= config_.train.rewind.times) return false;
  saver_.end(state_.step);
  const int64_t proven = proven_checkpoint();
  const std::string to = proven < 0 ? "" : checkpoint_path(config_.run.dir, proven);
  const std::string checkpoint = dist::all_gather_text(world_.control(), world_.rank() == 0 ? to : "").front();
  if (checkpoint.empty()) return false;
  const dist::Patience patience(world_);
  const int64_t spike = state_.step + 1, next = state_.next_sample + config_.train.global_batch;
  micro_batches_.reset();
  stream_.reset();
  callbacks_ = Callbacks();
  state_ = load_verified_checkpoint(find_checkpoint(world_, config_.run.dir, {checkpoint}), parts());
  const int64_t first = state_.next_sample;
  state_.skipped_samples += next - first;
  state_.next_sample = next;
  sane_step_ = record_.parent_step = state_.step;
  record_.changes.push_back({spike, kRewind, fmt::format("step {}, loss {}", spike, loss),
                             fmt::format("step {}, without samples {} to {}", state_.step, first, next - 1)});
  if (world_.rank() == 0) {
    log_warning(
        "step {}: loss {} is far above those before; going back to step {} and past samples {} to {} "
        "(train.rewind, {} of {})",
        spike, loss, state_.step, first, next - 1, done + 1, config_.train.rewind.times);
    set_aside_other_branch(checkpoint);
    write_run_folder(config_.run.dir, folder_);
    callbacks_ = Callbacks(standard_callbacks(config_, plan_, state_.step));
  }
  make_stream();
  dist::barrier(world_.control());
  return true;
}

}  // namespace vmoba::train
