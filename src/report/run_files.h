// What a run's folder holds for its report: metrics, configuration, data, samples. Everything is optional except the
// folder: a run that has just begun, or one of an earlier version, has less of it.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "report/metrics_history.h"

namespace vmoba::report {

struct SampleVideo {
  std::string file;  // below the run's folder, "samples/step-000100-0.mp4"
  int64_t step = 0, prompt_number = 0;
  std::string prompt;
  int64_t bytes = 0;
};

// One of contact_sheet/: frames of a clip as they were trained on.
struct TrainedClip {
  std::string file;  // "contact_sheet/000.jpg"
  std::string caption, source, bucket;
  int64_t bytes = 0;
};

struct DroppedFile {
  std::string path, reason;
};

struct DataBucket {
  int64_t frames = 0, height = 0, width = 0, tokens = 0, clips = 0;
};

struct RunFiles {
  std::string folder, name;
  MetricsHistory history;
  std::map<std::string, std::string> configuration;  // by full key; empty where there is no config.resolved.yaml
  std::vector<SampleVideo> samples;                  // by step, then prompt
  std::vector<TrainedClip> contact_sheet;
  std::vector<DataBucket> buckets;
  std::vector<DroppedFile> dropped;
  std::vector<std::string> data_notes;
  int64_t clips = 0, held_out_clips = 0;

  // The value of a key, or "".
  std::string value(const std::string& key) const;
  // A number of the last line of the metrics; NaN where it has none.
  double last(const std::string& name) const;
};

// Throws Error(kInput) where `folder` is no folder or has neither metrics nor a configuration, and where one of its
// files is damaged.
RunFiles read_run(const std::string& folder);

// The videos of <folder>/samples by step, then prompt; none where there is no such folder. Prompts stand beside them in
// files of the same name that end in .txt.
std::vector<SampleVideo> read_samples(const std::string& folder);

// The run's name and configuration alone.
RunFiles read_run_configuration(const std::string& folder);

// Names that tell the folders apart: their last parts, as few as it takes.
std::vector<std::string> names_of_folders(const std::vector<std::string>& folders);

// The run beside `folder` whose metrics are the newest, or "" where there is none: what a change of the configuration
// is most likely to be compared with.
std::string run_beside(const std::string& folder);

}  // namespace vmoba::report
