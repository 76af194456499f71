// state/trainer.json, a checkpoint's manifest: where training stood, which run it belongs to, and the hash that covers
// the checksums of all other files (checksums.h). It is written last.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace vmoba::train {

struct TrainerState {
  int64_t step = 0;         // optimiser steps done
  int64_t next_sample = 0;  // global sample number that comes next
  uint64_t seed = 0;
  int64_t skipped_samples = 0;                       // of those before next_sample: passed over by rewinds
  std::vector<data::ClipFailure> failed_clips = {};  // which a resumed run repeats
};

// A value that a run went on with in place of another.
struct ConfigChange {
  int64_t step = 0;  // after which
  std::string key, old_value, new_value;
};

// Which run a checkpoint belongs to.
struct RunRecord {
  std::string run;          // id: hash of configuration and clips, '-', what was drawn when the run was started
  std::string folder;       // id of the run folder that it was written to
  int64_t parent_step = 0;  // the checkpoint that training went on from; 0: none
  std::string version;      // of the program
  std::string clip_plan;    // hash of the clips and their order
  int64_t clips = 0;
  std::string base;                   // hash of the frozen weights beside adapters; "" without
  std::vector<ConfigChange> changes;  // since the run began, in order
};

// The first part of a run's id. Files of tensors carry it, so that equal runs write equal bytes.
std::string kind_of_run(const std::string& run);

struct Manifest {
  TrainerState state;
  std::vector<int64_t> updates;  // of each expert
  bool ema = false;
  RunRecord record;
  std::string checksums;  // hash of the file of checksums; "": a checkpoint of an earlier version, without
};

std::string manifest_path(const std::string& folder);
std::string manifest_to_json(const Manifest& manifest);
// Of a checkpoint's folder. Throws Error(kInput) where it is missing, damaged or changed.
Manifest read_manifest(const std::string& folder);

}  // namespace vmoba::train
