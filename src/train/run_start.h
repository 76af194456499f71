// What a run says, and refuses, before its first step.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"
#include "train/dist/mesh_sizes.h"

namespace vmoba::train {

// Of the first rank.
struct RunStart {
  const RootConfig& config;
  const data::ClipPlan& plan;
  at::Device device;
  dist::MeshSizes sizes;
  int64_t micro = 1;             // samples of a pass
  int64_t checkpoint_bytes = 0;  // of one
  std::string launcher;          // dist::World::launcher()
};

// One line each: device and driver, model and what is trained, clips and steps of an epoch, memory, checkpoints.
std::vector<std::string> start_lines(const RunStart& start);

// What deserves a warning: memory or disk that will not do, a launcher that kills too soon.
std::vector<std::string> start_warnings(const RunStart& start);

// Throws Error(kRuntime) where the run folder, which exists, has no room for one checkpoint.
void check_room(const RunStart& start);

// A large model on a CPU is a missing GPU, unless run.device says otherwise. Throws Error(kInput).
void check_device(const RootConfig& config, at::Device device);

// Everything that validation will use, where there is one. Throws Error.
void check_validation(const RootConfig& config);

}  // namespace vmoba::train
