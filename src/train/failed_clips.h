// Clips that could not be read, as all ranks know them: for the checkpoint, so that a resumed run repeats them, and for
// data.max_failed.
#pragma once
#include <string>
#include <vector>

#include "data/dataset.h"
#include "train/dist/communicator.h"

namespace vmoba::train {

struct FailedClips {
  std::vector<data::ClipFailure> to_repeat;  // those that concern samples from `next_sample` on
  int64_t files = 0;                         // distinct files that failed while training
  std::string refusal;                       // why the run must end, or ""
};

// Collective. `no_data`: why this rank has no sample to compute with, or "".
FailedClips gather_failed_clips(dist::Communicator& ranks, const data::ClipPlan& plan, const data::DataConfig& config,
                                const std::vector<data::ClipFailure>& own, const std::string& no_data,
                                int64_t next_sample);

}  // namespace vmoba::train
