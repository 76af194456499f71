// The plan for scripts (JSON) and for people (text).
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/clip_plan_print.h"

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
                        {"fps", clip.fps},
                        {"source_fps", clip.source_fps},
                        {"source_duration_s", clip.source_duration_s},
                        {"is_image", clip.is_image},
                        {"repeats", clip.repeats}};
  if (clip.crop.width > 0)
    out["crop"] = {clip.crop.x, clip.crop.x + clip.crop.width, clip.crop.y, clip.crop.y + clip.crop.height};
  if (clip.random_start) out["start_s"] = "random";
  if (clip.held_out) out["held_out"] = true;
  if (!clip.mask_path.empty()) out["mask_path"] = clip.mask_path;
  return out;
}

// Of files whose own frames do not suffice; a frame or two in ten may come twice.
int64_t slow_clips(const ClipPlan& plan) {
  constexpr double kEnough = 0.8;
  return std::count_if(plan.clips.begin(), plan.clips.end(), [](const Clip& clip) {
    return !clip.is_image && clip.frames > 1 && clip.source_fps < kEnough * clip.fps;
  });
}

}  // namespace

std::vector<std::string> plan_remarks(const ClipPlan& plan) {
  std::vector<std::string> out;
  const auto say = [&](int64_t count, const char* what) {
    if (count > 0) out.push_back(fmt::format("{} {}", count, what));
  };
  say(plan.missing_captions, "clips have no caption and train with an empty one");
  say(plan.upscaled_clips, "clips are smaller than their bucket and are enlarged");
  say(plan.interlaced_clips, "clips are interlaced and train with both fields in one picture; deinterlace them first");
  say(plan.hdr_clips,
      "clips are HDR (PQ or HLG) and train with its curve, which looks flat; convert them to SDR first");
  say(plan.gapped_files, "videos have gaps in their clock; clips lie between them");
  say(plan.retimed_clips, "clips are taken at the rate of their manifest, which is not their file's");
  say(slow_clips(plan), "clips are of files with fewer frames a second than data.fps and show frames several times");
  out.insert(out.end(), plan.notes.begin(), plan.notes.end());
  return out;
}

std::string plan_to_json(const ClipPlan& plan) {
  nlohmann::json out = {{"clips", nlohmann::json::array()},      {"dropped", nlohmann::json::array()},
                        {"buckets", nlohmann::json::array()},    {"missing_captions", plan.missing_captions},
                        {"upscaled_clips", plan.upscaled_clips}, {"interlaced_clips", plan.interlaced_clips},
                        {"hdr_clips", plan.hdr_clips},           {"gapped_files", plan.gapped_files},
                        {"retimed_clips", plan.retimed_clips},   {"notes", plan.notes}};
  for (const Clip& clip : plan.clips)
    out["clips"].push_back(to_json(clip, plan.buckets[static_cast<size_t>(clip.bucket)]));
  for (const DroppedClip& dropped : plan.dropped)
    out["dropped"].push_back({{"path", dropped.path}, {"reason", dropped.reason}});
  for (const Bucket& bucket : plan.buckets) out["buckets"].push_back(to_json(bucket));
  // File names need not be UTF-8.
  return out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string clip_to_json(const ClipPlan& plan, const Clip& clip, const std::string& path) {
  const Bucket& bucket = plan.buckets[static_cast<size_t>(clip.bucket)];
  nlohmann::json out = to_json(clip, bucket);
  out["path"] = path;
  out["bucket"] = to_json(bucket);
  out["bucket"].erase("clips");
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
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
  for (const std::string& line : plan_remarks(plan)) out += "\n" + line + "\n";
  return out;
}

}  // namespace vmoba::data
