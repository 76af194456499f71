// The `data:` group: which clips a run trains on and how they are cut from files.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba::data {

// One entry of `data.sets`: a data set of its own, with what it does not share with the others.
struct DataSetConfig {
  std::string path;
  int64_t repeats = 1;
  int64_t height = 0, width = 0;  // 0: those of `data`
  std::vector<int64_t> frames;    // empty: those of `data`
  std::string caption_prefix;     // after that of `data`

  void visit(ConfigVisitor& v);
};

// The `data:` group.
struct DataConfig {
  std::string path;             // folder, or manifest file (.jsonl, .csv, .json, .txt)
  std::string format = "auto";  // auto | folder | jsonl | csv | json | lines
  std::string video_column;     // empty: the usual names are tried
  std::string caption_column;
  std::string caption_prefix;          // put before every caption
  double fps = 16;                     // frames per second of the model's clips
  std::vector<int64_t> frames = {81};  // frame buckets, 4n+1 each; a clip takes the largest that it can fill
  int64_t height = 480, width = 832;   // target area; see aspect_buckets
  int64_t aspect_buckets = 1;          // 1: every clip is cropped to height x width
  double min_aspect = 0.5, max_aspect = 2.0;
  std::string frame_extraction = "head";  // head | uniform | chunk | random (start of the clip inside a longer video)
  int64_t clips_per_video = 4;            // with uniform: clips taken from each video, at most
  bool images = true;                     // take images as 1-frame clips
  int64_t num_repeats = 1;
  double horizontal_flip = 0.0;  // probability
  int64_t decode_threads = 0;    // 0: one per core, at most 8
  int64_t prefetch_clips = 4;    // decoded clips held ahead, at most
  double patience_s = 60;        // for storage that does not answer
  double max_failed = 0.01;      // share of the files
  std::vector<DataSetConfig> sets;

  void visit(ConfigVisitor& v);
  void validate() const;
  // What each data set comes to: `data` itself where it has no sets, else one for each of them.
  std::vector<DataConfig> each_set() const;
};

}  // namespace vmoba::data
