#include "data/config.h"

#include <cmath>

#include "core/check.h"

namespace vmoba::data {

void DataSetConfig::visit(ConfigVisitor& v) {
  v.field("path", path, "Folder or manifest, as `data.path`.");
  v.field("repeats", repeats, "How often an epoch shows each clip of this set, times `data.num_repeats`.",
          between(1, 1e6));
  v.field("height", height, "Height of its clips; 0: `data.height`.", between(0, 16384));
  v.field("width", width, "Width of its clips; 0: `data.width`.", between(0, 16384));
  v.field("frames", frames, "Frames of its clips; empty: `data.frames`.", list_of(-1, 1));
  v.field("caption_prefix", caption_prefix, "Text before its captions, behind `data.caption_prefix`.");
}

void DataConfig::visit(ConfigVisitor& v) {
  v.field("path", path,
          "Folder of media files, or a manifest (.jsonl, .csv, .tsv, .json, or videos.txt beside prompt.txt).");
  v.field("format", format, "Layout of data.path; auto goes by what is there.",
          one_of({"auto", "folder", "jsonl", "csv", "tsv", "json", "lines"}));
  v.field("video_column", video_column, "Column or key of the path; empty: the usual names are tried.");
  v.field("caption_column", caption_column, "Column or key of the caption; empty: the usual names are tried.");
  v.field("caption_prefix", caption_prefix, "Text put before every caption.");
  v.field("fps", fps, "Frames per second of the model's clips; sources are resampled by their timestamps.", above(0));
  v.field("frames", frames,
          "Frames per clip, rounded down to 1 + stride n; a video takes the largest that it can fill.", list_of(-1, 1));
  v.field("height", height, "Height of a clip in pixels.", between(1, 16384));
  v.field("width", width, "Width of a clip in pixels.", between(1, 16384));
  v.field("aspect_buckets", aspect_buckets,
          "Sizes of equal area between min_aspect and max_aspect; 1: every clip is cropped to height x width.",
          between(1, 64));
  v.field("min_aspect", min_aspect, "Smallest width / height of the aspect buckets.", above(0));
  v.field("max_aspect", max_aspect, "Largest width / height of the aspect buckets.", above(0));
  v.field(
      "frame_extraction", frame_extraction,
      "Where clips lie in a longer video: its head, uniform or chunk (several clips), random (drawn for each sample).",
      one_of({"head", "uniform", "chunk", "random"}));
  v.field("clips_per_video", clips_per_video, "Clips that frame_extraction uniform takes from each video, at most.",
          between(1, 1000));
  v.field("images", images, "Take images as clips of one frame.");
  v.field("num_repeats", num_repeats, "Times that each clip is shown in an epoch.", between(1, 1e6));
  v.field("horizontal_flip", horizontal_flip, "Probability of mirroring a sample left to right.", between(0, 1));
  v.field("decode_threads", decode_threads, "Decoding threads; 0: one per core, at most 8.", between(0, 256));
  v.field("prefetch_clips", prefetch_clips, "Clips decoded ahead of training, at most; bounds the loader's memory.",
          between(1, 4096));
  v.field("patience_s", patience_s,
          "Seconds that reading is tried again where a file is missing or the storage reports an error (EIO, ESTALE), "
          "and writing the last checkpoint where the disk takes none. Damaged files are not waited for.",
          between(0, 86400));
  v.field(
      "max_failed", max_failed,
      "Share of the media files that may be missing, unreadable or damaged. With more, a start is refused and a run "
      "saves and leaves. Above 0, one file always may.",
      between(0, 1));
  v.groups("sets", "Several data sets in one training, in place of `data.path`: what a set leaves out is as in `data`.",
           sets);
}

std::vector<DataConfig> DataConfig::each_set() const {
  if (sets.empty()) return {*this};
  std::vector<DataConfig> out;
  for (const DataSetConfig& set : sets) {
    DataConfig one = *this;
    one.sets.clear();
    one.path = set.path;
    one.num_repeats *= set.repeats;
    if (set.height > 0) one.height = set.height;
    if (set.width > 0) one.width = set.width;
    if (!set.frames.empty()) one.frames = set.frames;
    one.caption_prefix += set.caption_prefix;
    out.push_back(std::move(one));
  }
  return out;
}

void DataConfig::validate() const {
  VMOBA_CHECK_INPUT(!frames.empty(), "expected at least one number in data.frames, found none");
  VMOBA_CHECK_INPUT(min_aspect <= max_aspect, "expected data.min_aspect <= data.max_aspect, found {} and {}",
                    min_aspect, max_aspect);
  VMOBA_CHECK_INPUT(std::isfinite(fps) && fps <= 1000, "expected data.fps up to 1000, found {}", fps);
  VMOBA_CHECK_INPUT(sets.empty() || path.empty(),
                    "expected data.path or data.sets, found both; make data.path '{}' one of the sets", path);
  for (size_t i = 0; i < sets.size(); ++i)
    VMOBA_CHECK_INPUT(!sets[i].path.empty(), "expected a folder or a manifest under data.sets[{}].path, found nothing",
                      i);
  for (const DataConfig& set : each_set())
    for (const int64_t count : set.frames)
      VMOBA_CHECK_INPUT(count >= 1 && count <= 100'000, "expected data.frames from 1 to 100000, found {}", count);
}

}  // namespace vmoba::data
