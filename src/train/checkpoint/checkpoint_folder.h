// Names and life of checkpoint folders in a run's folder: <run.dir>/checkpoint-<step>/, or with ".unfinished" behind it
// while it is written or deleted.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace vmoba::train {

// Names of the complete checkpoints in a run folder, steps ascending: folders "checkpoint-<step>".
std::vector<std::string> checkpoint_names(const std::string& run_dir);
// -1 for a name that is none of a checkpoint.
int64_t step_in_name(const std::string& name);
std::vector<int64_t> checkpoint_steps(const std::string& run_dir);
std::string checkpoint_path(const std::string& run_dir, int64_t step);
// Where the checkpoint of this step is written.
std::string unfinished_path(const std::string& run_dir, int64_t step);

// Where a checkpoint keeps exactly what was trained of an expert: a transformer's folder, or with `lora` a file of
// adapters. `average`: of the moving average.
std::string weights_path(const std::string& folder, size_t expert, bool lora, bool average);
std::string optimizer_path(const std::string& folder, size_t expert);

// Throws Error(kRuntime) with what to change.
void make_folder(const std::string& path);
// Deletes a folder that may be large: renamed first, so that a crash never leaves half a checkpoint under its name.
void remove_folder(const std::string& path);
// Renames a complete unfinished folder to its final name; what has that name is set aside (run_folder.h). Returns the
// final name. Throws Error(kRuntime).
std::string commit_checkpoint(const std::string& run_dir, int64_t step);

// Makes the run folder and removes what an interrupted save left behind. Throws Error(kRuntime) where it cannot be
// written.
void prepare_run_folder(const std::string& run_dir);

// For a run that starts anew: an earlier run's files in `run_dir` are moved to "<run_dir>.1" (or the next free
// number), so that nothing is lost. Returns the new place, or nothing where the folder held no run.
std::optional<std::string> set_aside_earlier_run(const std::string& run_dir);

}  // namespace vmoba::train
