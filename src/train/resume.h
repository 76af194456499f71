// Where a run begins: which checkpoint, whether it is whole, and what of the configuration may have changed since.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "config/resume_rules.h"
#include "train/agreement.h"
#include "train/checkpoint/manifest.h"
#include "train/dist/world.h"

namespace vmoba::train {

// Nothing (anew), "latest", a checkpoint's folder, or a run's folder, whose newest checkpoint is meant.
struct ResumeRequest {
  std::string from;
};

// The configuration for `--resume` without `--config`: that of the checkpoint, with run.dir where the checkpoint lies
// unless `overrides` name it. Throws Error(kInput) where there is none.
RootConfig config_of_checkpoint(const ResumeRequest& resume, const std::vector<std::string>& overrides);

// The checkpoint to begin with, compared with its checksums by all ranks together; "" to begin anew. Of a run's folder
// the newest one that is whole and belongs to it; what is passed over is said. Collective. Throws Error(kInput) where a
// named checkpoint is damaged, or a run has none that is whole.
std::string find_checkpoint(dist::World& world, const std::string& run_dir, const ResumeRequest& resume);

// What went on with other values, of a checkpoint and this run. Throws Error(kInput) with every value of the model that
// differs.
std::vector<ConfigChange> allowed_changes(const std::string& checkpoint, const Manifest& manifest,
                                          const RootConfig& config, const RunRecord& now);
// One block for people; "" for none.
std::string changes_text(const std::string& checkpoint, const std::vector<ConfigChange>& changes);

}  // namespace vmoba::train
