// How fast this machine decodes the data, beside the ffmpeg program.
#pragma once
#include <cstdint>
#include <string>

#include "data/clip_plan.h"

namespace vmoba::data {

// Decodes the plan's longest video at full size with decode_threads threads, best of three runs, without and with
// conversion to RGB, and lets `ffmpeg -threads N -f null -` decode it in turn (where it is on the PATH); then draws one
// epoch (at most 64 samples) from a SampleStream. Returns a report for people, one line per measurement.
std::string bench_decoding(const ClipPlan& plan, const DataConfig& config, uint64_t seed);

}  // namespace vmoba::data
