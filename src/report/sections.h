// The sections of a report's page, as HTML. Text from files passes html_text (html.h).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "report/run_files.h"

namespace vmoba::report {

// What is left of the bytes that pictures and videos may take inside the page.
struct MediaBudget {
  int64_t left_bytes, video_bytes;
};

// Figures of the last step.
std::string tiles_html(const RunFiles& run);
// The newest samples of every prompt inside the page, older ones as far as the budget goes, and links to the rest.
// `up` leads from the page to the run's folder: "" or "../runs/a/".
std::string samples_html(const RunFiles& run, const std::string& up, MediaBudget& budget);
// Clips as they are trained on, buckets, remarks.
std::string data_html(const RunFiles& run, MediaBudget& budget);
std::string dropped_html(const RunFiles& run);
// The keys whose values differ between the runs, and their values.
std::string differences_html(const std::vector<RunFiles>& runs);
// All keys of one run.
std::string configuration_html(const RunFiles& run);

}  // namespace vmoba::report
