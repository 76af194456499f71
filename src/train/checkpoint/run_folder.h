// What a run's folder knows of itself (<run.dir>/run.json), and where checkpoints go that the run left behind: into
// <run.dir>/set-aside-<n>/, never away.
#pragma once
#include <cstdint>
#include <optional>
#include <set>
#include <string>

namespace vmoba::train {

struct RunFolder {
  std::string id;            // drawn when the folder began
  std::set<int64_t> starts;  // checkpoints from which a branch began; never removed
};

// An id that no other has, on whatever host it is drawn.
std::string drawn_id();

// Of a folder without a record (of an earlier version, or a run that begins): a new id. Throws Error(kInput) where the
// record is damaged.
RunFolder read_run_folder(const std::string& run_dir);
void write_run_folder(const std::string& run_dir, const RunFolder& folder);

// Moves the checkpoints above `step` to the next free set-aside-<n>, with a copy of the metrics so far, so that the
// abandoned branch can go on from there. Returns its path, or nothing where there were none. Throws Error(kRuntime).
std::optional<std::string> set_aside_later_checkpoints(const std::string& run_dir, int64_t step);

}  // namespace vmoba::train
