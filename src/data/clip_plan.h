// From files to a plan: every clip of the data set with its bucket, or its reason for being dropped.
//
// Nothing is dropped in silence: plan.dropped lists each file and manifest line that gives no clip, with the reason.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/config.h"
#include "data/file_stamp.h"
#include "data/transforms.h"

namespace vmoba::data {

// What frames and sizes the model can take; comes from codec and model.
struct ClipGeometry {
  int64_t temporal_stride = 4;  // frames = 1 + temporal_stride * n
  int64_t pixel_multiple = 16;  // height and width: codec stride times patch size
  int64_t least_frames = 1;     // shorter clips have nothing left to learn once the model was told its first frame
  // Tokens of one clip (T' * H' * W' patches).
  int64_t tokens(int64_t frames, int64_t height, int64_t width) const {
    return (1 + (frames - 1) / temporal_stride) * (height / pixel_multiple) * (width / pixel_multiple);
  }
};

struct Bucket {
  int64_t frames = 0, height = 0, width = 0;
  int64_t tokens = 0;
  int64_t clips = 0;
};

struct Clip {
  std::string path;
  std::string caption;
  double start_s = 0;  // where the clip begins in the file
  double slack_s = 0;  // how much later it may begin, where random_start is set
  double fps = 0;      // frames of the clip per second of the file
  CropBox crop;        // part of the displayed picture; empty: all of it
  int64_t bucket = 0;  // index into ClipPlan::buckets
  int64_t frames = 0;
  int64_t source_width = 0, source_height = 0;  // as displayed (rotation applied)
  double source_fps = 0, source_duration_s = 0;
  bool is_image = false;
  bool random_start = false;  // the start is drawn for each sample, from start_s to slack_s later
  int64_t repeats = 1;        // times it is shown in an epoch
  bool held_out = false;      // for validation, never trained on
  std::string mask_path;      // picture or video whose brightness weighs the loss; empty: all counts alike
  FileStamp stamp, mask_stamp;
};

struct DroppedClip {
  std::string path;
  std::string reason;
  bool failed = false;  // the file is missing, unreadable or damaged; nothing that the configuration asked for
};

struct ClipPlan {
  std::vector<Clip> clips;
  std::vector<DroppedClip> dropped;
  std::vector<Bucket> buckets;     // those that have clips, by frames, height, width
  int64_t missing_captions = 0;    // clips kept with an empty caption
  int64_t upscaled_clips = 0;      // clips whose source is smaller than their bucket
  int64_t interlaced_clips = 0;    // both fields of a frame are trained as one picture
  int64_t hdr_clips = 0;           // PQ or HLG curves, which are left as they are
  int64_t gapped_files = 0;        // videos whose clock has gaps; clips lie between them
  int64_t retimed_clips = 0;       // the manifest gives another rate than the file
  int64_t files = 0;               // distinct media files that were looked at, of each data set
  std::vector<std::string> notes;  // what else is to be known: keys without a use, media that no manifest names
};

// Reads manifest and files (probing in threads; the plan's order does not depend on them). Throws Error(kInput) where
// the path does not exist or no clip is usable: the message lists the dropped files. Storage that fails is waited for:
// up to data.patience_s in all, missing files for three seconds. `progress` is told now and then how many files are
// done.
ClipPlan plan_clips(const DataConfig& config, const ClipGeometry& geometry,
                    const std::function<void(int64_t done, int64_t files)>& progress = {});

// How many files of the plan may fail, at planning and while training together: data.max_failed of them, and at least
// one where that is not 0.
int64_t allowed_failures(const DataConfig& config, const ClipPlan& plan);
// Throws Error(kInput) listing the failed files where there are more.
void check_failures(const DataConfig& config, const ClipPlan& plan);

// Decoding threads that the configuration asks for, resolved.
int64_t decode_threads(const DataConfig& config);

// One line for each thing that the plan does to clips and that its user may not expect: missing captions, enlarged
// clips, interlaced and HDR sources, gaps, rates, and its notes.
std::vector<std::string> plan_remarks(const ClipPlan& plan);

// One JSON object: clips, dropped (path, reason), buckets.
std::string plan_to_json(const ClipPlan& plan);
// For people: buckets, clips, drops, tokens.
std::string plan_to_text(const ClipPlan& plan);

}  // namespace vmoba::data
