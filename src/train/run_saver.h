// Saves a run: begins checkpoints when they are due, ends them when all ranks have written, tries again where the disk
// did not take one, and sees to it that the last state is saved. Everything here is collective: a checkpoint fails on
// all ranks or on none (checkpoint_writer.h).
#pragma once
#include <functional>
#include <utility>

#include "train/checkpoint/checkpoint_writer.h"
#include "train/dist/world.h"
#include "train/report/callback.h"
#include "train/save_schedule.h"
#include "train/signals.h"

namespace vmoba::train {

class RunSaver {
 public:
  // Everything is borrowed. `parts` names what is saved, as it is when asked.
  RunSaver(const RootConfig& config, dist::World& world, GraceWatch& grace, Callbacks& callbacks,
           std::function<CheckpointParts()> parts);

  // Which checkpoints stay, of the first rank.
  void set_rotation(Rotation rotation) { writer_.set_rotation(std::move(rotation)); }
  // Before the first step: takes the memory that checkpoints need. `step` is the one that the run begins after.
  void start(int64_t step, const Epochs& epochs);
  // What a checkpoint takes on the disk.
  int64_t checkpoint_bytes() { return writer_.file_bytes(parts_()); }

  bool due(int64_t step) const { return schedule_.due(step); }
  // Begins a checkpoint; without train.checkpoint_async, ends it too. Where it fails, the schedule tries again.
  void begin(const TrainerState& state);
  // Waits until the checkpoint under way is on disk, or has failed. Nothing where there is none.
  void end(int64_t step);
  // Returns when this state is on disk; tries for data.patience_s, after a stop for what is left of run.grace_s, and
  // throws Error(kRuntime) then.
  void save_last(const TrainerState& state);

  bool under_way() const { return writer_.under_way(); }
  CheckpointWriter::Progress progress() const { return writer_.progress(); }
  // Lets this rank's writing end early, where another rank's failed.
  void give_up() { writer_.give_up(); }
  int64_t saved_step() const { return schedule_.saved_step(); }

 private:
  // Whether `action` did what it should; a SaveError is logged and scheduled.
  bool attempt(int64_t step, const std::function<void()>& action);

  const RootConfig& config_;
  dist::World& world_;
  GraceWatch& grace_;
  Callbacks& callbacks_;
  std::function<CheckpointParts()> parts_;
  CheckpointWriter writer_;
  SaveSchedule schedule_{0, 0, {}, 0};
  double stall_s_ = 0;  // that training stood still for the checkpoint under way
};

}  // namespace vmoba::train
