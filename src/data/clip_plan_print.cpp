// The plan for scripts (JSON) and for people (text).
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/clip_plan.h"

namespace vmoba::data {
namespace {

constexpr size_t kListedClips = 50;

nlohmann::json to_json(const Bucket& bucket) {
  return {{"frames", bucket.frames},
          {"height", bucket.height},
          {"width", bucket.width},
          {"tokens", bucket.tokens},
          {"clips", bucket.clips}};
}

nlohmann::json to_json(const Clip& clip, const Bucket& bucket) {
  nlohmann::json out = {{"path", clip.path},
                        {"caption", clip.caption},
                        {"start_s", clip.start_s},
                        {"bucket", clip.bucket},
                        {"frames", clip.frames},
                        {"tokens", bucket.tokens},
                        {"source_width", clip.source_width},
                        {"source_height", clip.source_height},
                        {"source_fps", clip.source_fps},
                        {"source_duration_s", clip.source_duration_s},
                        {"is_image", clip.is_image},
                        {"repeats", clip.repeats}};
  if (clip.random_start) out["start_s"] = "random";
  if (clip.held_out) out["held_out"] = true;
  return out;
}

}  // namespace

std::string plan_to_json(const ClipPlan& plan) {
  nlohmann::json out = {{"clips", nlohmann::json::array()},
                        {"dropped", nlohmann::json::array()},
                        {"buckets", nlohmann::json::array()},
                        {"missing_captions", plan.missing_captions},
                        {"upscaled_clips", plan.upscaled_clips}};
  for (const Clip& clip : plan.clips)
    out["clips"].push_back(to_json(clip, plan.buckets[static_cast<size_t>(clip.bucket)]));
  for (const DroppedClip& dropped : plan.dropped)
    out["dropped"].push_back({{"path", dropped.path}, {"reason", dropped.reason}});
  for (const Bucket& bucket : plan.buckets) out["buckets"].push_back(to_json(bucket));
  // File names need not be UTF-8.
  return out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string plan_to_text(const ClipPlan& plan) {
  std::string out = fmt::format("{} clips in {} buckets, {} dropped\n\n  frames  height   width   tokens    clips\n",
                                plan.clips.size(), plan.buckets.size(), plan.dropped.size());
  for (const Bucket& b : plan.buckets)
    out += fmt::format("{:8}{:8}{:8}{:9}{:9}\n", b.frames, b.height, b.width, b.tokens, b.clips);
  out += "\nclips:\n";
  for (size_t i = 0; i < plan.clips.size() && i < kListedClips; ++i) {
    const Clip& clip = plan.clips[i];
    const Bucket& bucket = plan.buckets[static_cast<size_t>(clip.bucket)];
    const std::string source = clip.is_image
                                   ? std::string("image")
                                   : fmt::format("{:.2f} s at {:.2f} fps", clip.source_duration_s, clip.source_fps);
    const std::string start = clip.random_start ? std::string("a random time") : fmt::format("{:.2f} s", clip.start_s);
    out += fmt::format("  {} [{}x{}, {}] -> {} frames from {}, {}x{}, {} tokens: {}\n", clip.path, clip.source_width,
                       clip.source_height, source, clip.frames, start, bucket.width, bucket.height, bucket.tokens,
                       (clip.held_out ? "(held out) " : "") + (clip.caption.empty() ? "(no caption)" : clip.caption));
  }
  if (plan.clips.size() > kListedClips)
    out += fmt::format("  and {} more (--json lists them all)\n", plan.clips.size() - kListedClips);
  if (!plan.dropped.empty()) out += "\ndropped:\n";
  for (const DroppedClip& dropped : plan.dropped) out += fmt::format("  {}: {}\n", dropped.path, dropped.reason);
  if (plan.missing_captions > 0)
    out += fmt::format("\n{} clips have no caption and train with an empty one\n", plan.missing_captions);
  if (plan.upscaled_clips > 0)
    out += fmt::format("\n{} clips are smaller than their bucket and are enlarged\n", plan.upscaled_clips);
  return out;
}

}  // namespace vmoba::data
