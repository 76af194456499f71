// A contact sheet of what a run trains on: frames of its first samples as the model meets them (resized, cropped,
// mirrored), from all buckets in turn, as JPEG pictures in a folder.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"

namespace vmoba::train {

// Numbers of the samples that the sheet shows: each of another clip, buckets in turn, at most `most`.
std::vector<int64_t> contact_sheet_samples(const data::ClipPlan& plan, uint64_t seed, int64_t micro_batch,
                                           int64_t most);

// Writes `folder`/000.jpg and so on and `folder`/index.json with caption, file and bucket of each. Clips that cannot be
// decoded are left out. Leaves a folder alone that holds the sheet of the same clips, draws and sizes. Decodes with one
// thread; ends early, without index.json, once `cancel` is true. Throws Error(kRuntime) where the folder cannot be
// written.
void write_contact_sheet(const std::string& folder, const RootConfig& config, const data::ClipPlan& plan,
                         const std::atomic<bool>& cancel);

}  // namespace vmoba::train
