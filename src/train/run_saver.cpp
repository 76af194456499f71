#include "train/run_saver.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"

namespace vmoba::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPause_s = 2;  // between attempts to save the last state

}  // namespace

RunSaver::RunSaver(const RootConfig& config, dist::World& world, GraceWatch& grace, Callbacks& callbacks,
                   std::function<CheckpointParts()> parts)
    : config_(config),
      world_(world),
      grace_(grace),
      callbacks_(callbacks),
      parts_(std::move(parts)),
      writer_(world.control(), config.run.dir, config.train.keep_checkpoints) {}

void RunSaver::start(int64_t step, const Epochs& epochs) {
  const TrainConfig& train = config_.train;
  schedule_ = SaveSchedule(train.checkpoint_every, train.checkpoint_every_epochs, epochs, step);
  if (train.checkpoint_every > 0 || train.checkpoint_every_epochs > 0) writer_.reserve(parts_());
}

bool RunSaver::attempt(int64_t step, const std::function<void()>& action) {
  grace_.saving(true);
  bool done = true;
  try {
    const dist::Patience patience(world_);
    action();
  } catch (const SaveError& e) {
    const int64_t next = schedule_.failed(step);
    if (world_.rank() == 0) log_error("{}; the run goes on and tries again after step {}", e.what(), next);
    done = false;
  }
  grace_.saving(false);
  return done;
}

void RunSaver::begin(const TrainerState& state) {
  end(state.step);
  const Clock::time_point start = Clock::now();
  world_.note(state.step, "beginning a checkpoint");
  if (!attempt(state.step, [&] { writer_.begin(state, parts_()); })) return;
  stall_s_ = seconds_since(start);
  if (!config_.train.checkpoint_async) end(state.step);
}

void RunSaver::end(int64_t step) {
  if (!writer_.under_way()) return;
  const Clock::time_point start = Clock::now();
  world_.note(step, "ending a checkpoint");
  CheckpointWriter::Saved saved;
  if (!attempt(step, [&] { saved = writer_.finish(); })) return;
  schedule_.saved(saved.step);
  stall_s_ += seconds_since(start);
  if (world_.rank() == 0) log_info("checkpoint of step {}: training paused for {:.3f} s", saved.step, stall_s_);
  callbacks_.on_checkpoint(saved.step, saved.folder);
}

void RunSaver::save_last(const TrainerState& state) {
  const Clock::time_point start = Clock::now();
  while (true) {
    begin(state);
    end(state.step);
    if (schedule_.saved_step() == state.step) return;
    const double patience_s = stop_signal() == 0 ? config_.data.patience_s : config_.run.grace_s - seconds_since_stop();
    // The first rank's clock is that of all.
    const double left_s = dist::all_gather_numbers(world_.control(), {patience_s - seconds_since(start)}).front();
    VMOBA_CHECK(left_s > 0,
                "step {}: expected the disk to take the last checkpoint, found that it does not; older checkpoints are "
                "untouched: free disk space and continue with --resume latest",
                state.step);
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(kPause_s, left_s)));
  }
}

}  // namespace vmoba::train
