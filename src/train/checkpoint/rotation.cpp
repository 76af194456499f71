#include "train/checkpoint/rotation.h"

#include "core/check.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/manifest.h"

namespace vmoba::train {
namespace {

// A folder that cannot be told is nobody's.
bool made_here(const std::string& checkpoint, const std::string& folder_id) {
  try {
    return read_manifest(checkpoint).record.folder == folder_id;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

std::vector<int64_t> steps_to_remove(const std::vector<int64_t>& steps, const Rotation& rotation) {
  std::vector<int64_t> out;
  if (rotation.newest <= 0) return out;
  const std::set<int64_t> also = rotation.also ? rotation.also() : std::set<int64_t>();
  for (size_t i = 0; i + size_t(rotation.newest) < steps.size(); ++i) {
    const bool kept_by_number = rotation.every > 0 && steps[i] % rotation.every == 0;
    if (!kept_by_number && !also.contains(steps[i])) out.push_back(steps[i]);
  }
  return out;
}

void rotate_checkpoints(const std::string& run_dir, const Rotation& rotation) {
  if (rotation.newest <= 0) return;
  std::vector<int64_t> own;
  for (const int64_t step : checkpoint_steps(run_dir))
    if (made_here(checkpoint_path(run_dir, step), rotation.folder)) own.push_back(step);
  for (const int64_t step : steps_to_remove(own, rotation)) remove_folder(checkpoint_path(run_dir, step));
}

}  // namespace vmoba::train
