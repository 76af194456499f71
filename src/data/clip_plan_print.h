// One clip as text, for hashes and comparisons (the whole plan: data/clip_plan.h).
#pragma once
#include <string>

#include "data/clip_plan.h"

namespace vmoba::data {

// On one line: as plan_to_json has it, with its bucket's sizes in place of the bucket's number, and with `path`.
std::string clip_to_json(const ClipPlan& plan, const Clip& clip, const std::string& path);

}  // namespace vmoba::data
