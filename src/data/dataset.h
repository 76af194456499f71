// The ordered stream of training samples.
//
// Which clip sample number i shows, and each of its random choices (start, flip), is a function of (seed, i): it does
// not depend on threads, ranks, or on where the stream was opened. Decoding runs ahead in threads with bounded memory
// and never reorders. A clip that turns out to be undecodable is logged once with path and reason, counted, and
// replaced by the next usable clip of its bucket (again a function of seed and sample number). Storage that fails is
// waited for up to data.patience_s (core/storage.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/storage.h"
#include "data/clip_plan.h"

namespace vmoba::data {

// Maps sample numbers to clips. Each epoch is a shuffle in which every clip appears once; `group` consecutive samples
// (numbers group*k .. group*k + group-1) share a bucket, so that they can form a batch. A bucket whose clips do not
// fill its last group repeats clips of that epoch there.
class SampleOrder {
 public:
  SampleOrder(const ClipPlan& plan, uint64_t seed, int64_t group);
  int64_t clip_of(int64_t sample) const;  // index into plan.clips
  int64_t samples_per_epoch() const;      // a multiple of `group`

 private:
  struct State;
  std::shared_ptr<State> state_;
};

struct Sample {
  int64_t index = 0;  // global sample number
  int64_t clip = 0;   // index into the plan
  std::string caption;
  at::Tensor video_CFHW;  // uint8, RGB [3, F, H, W], CPU; undefined where `encoded` holds what was made of it before
  std::map<std::string, at::Tensor> encoded;
  at::Tensor mask_FHW;  // uint8, of the clip's frames, or one for all of them; undefined: the clip has no mask
};

// What is already known of a clip from an earlier encoding: its tensors, or why it could not be decoded.
struct EncodedClip {
  std::map<std::string, at::Tensor> tensors;
  std::string failure;
};

// Clips that need no decoding any more.
class EncodedClips {
 public:
  virtual ~EncodedClips() = default;
  // Of clip `clip` of the plan, mirrored or not; nothing where it must be decoded. Called from several threads.
  virtual std::optional<EncodedClip> find(int64_t clip, bool flip) const = 0;
};

// That a clip could not be read. Damage is final: the clip is not tried again from this sample on. What the storage
// did, or a random start in a damaged file, concerns this sample alone.
struct ClipFailure {
  int64_t clip = 0;    // index into the plan
  int64_t sample = 0;  // the least that met it
  bool final = true;
  std::string reason;
};

// No clip of a bucket can be read: the storage is gone, or all is damaged.
class NoUsableClip : public Error {
 public:
  explicit NoUsableClip(const std::string& message) : Error(ErrorKind::kInput, message) {}
};

struct StreamStats {
  int64_t failed_clips = 0;  // distinct clips that could not be decoded, known ones included
  double wait_seconds = 0;   // time next() spent waiting
};

class SampleStream {
 public:
  // Delivers samples first .. first + block - 1, then the same behind first + stride, first + 2*stride, ... in this
  // order (ranks take strides). Clips that `encoded` knows are not decoded; it may be null, and must outlive the
  // stream. `known`: failures of an earlier part of the run, which are repeated without a look at the files.
  SampleStream(const ClipPlan& plan, const DataConfig& config, uint64_t seed, int64_t group, int64_t first,
               int64_t stride, int64_t block = 1, const EncodedClips* encoded = nullptr,
               std::vector<ClipFailure> known = {});
  ~SampleStream();
  // Throws NoUsableClip where no clip of a bucket can be decoded (with the list of failures).
  Sample next();
  // The same, or nothing where `give_up` turns true before the sample is there.
  std::optional<Sample> next_unless(const std::function<bool()>& give_up);
  StreamStats stats() const;
  // All failures so far, also of samples that are not delivered yet.
  std::vector<ClipFailure> failures() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What is drawn for the sample of this number when it shows `clip`.
struct ClipDraw {
  double start_s = 0;
  bool flip = false;
};
ClipDraw draw_clip(const Clip& clip, const DataConfig& config, uint64_t seed, int64_t sample);

// Frames of clip `clip` of the plan, begun at `start_s`, uint8 [3, F, H, W]. Waits for storage that fails. Throws
// MediaError (video_reader.h).
at::Tensor decode_planned_clip(const ClipPlan& plan, const DataConfig& config, int64_t clip, double start_s, bool flip,
                               int threads, Outage& outage, const std::atomic<bool>& cancel);

// The mask of clip `clip`, cut as decode_planned_clip cuts its frames: uint8 [F, H, W], one frame where it is a
// picture; undefined where the clip has none. The largest of red, green and blue counts.
at::Tensor decode_planned_mask(const ClipPlan& plan, const DataConfig& config, int64_t clip, const ClipDraw& draw,
                               int threads, Outage& outage, const std::atomic<bool>& cancel);

// uint8 [.., 3, F, H, W] -> fp32 in [-1, 1].
at::Tensor to_unit_range(const at::Tensor& video);

}  // namespace vmoba::data
