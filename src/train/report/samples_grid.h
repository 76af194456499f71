// One picture of how a run's samples change: a row for each prompt, a column for each of some steps, the middle frame
// of each video.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/sample_config.h"

namespace vmoba::train {

// Up to `most` of ascending `steps`: the first, the last, and what lies evenly between them.
std::vector<int64_t> grid_steps(const std::vector<int64_t>& steps, size_t most);

// Writes <run_dir>/samples/grid.png of the videos in <run_dir>/samples; nothing where there are none. Videos that
// cannot be read leave their place blank. Throws Error(kRuntime) where the folder cannot be written.
void write_samples_grid(const std::string& run_dir, const SampleConfig& sample);

}  // namespace vmoba::train
