// When frames are shown: holds, streams without presentation times, streams shorter than their file, clocks with gaps.
#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "core/random.h"
#include "data/clip_decoder.h"
#include "data/clip_plan.h"
#include "data/frame_parts.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::data;
using namespace vmoba::test;

namespace {

const std::string kData = fixtures() + "/data/";
constexpr ClipGeometry kGeometry{4, 16};

at::Tensor clip_of(const std::string& path, double start_s, double fps, int64_t frames, int64_t height, int64_t width,
                   int threads = 1) {
  VideoReader reader(path, threads);
  return decode_clip(reader, {start_s, fps, frames, height, width, false});
}

std::vector<int64_t> indices(const std::string& path, double start_s, double fps, int64_t frames, int threads = 1) {
  return counting_index(clip_of(path, start_s, fps, frames, 48, 64, threads));
}

std::vector<int64_t> run_of(int64_t first, int64_t count) {
  std::vector<int64_t> out(size_t(count), 0);
  std::iota(out.begin(), out.end(), first);
  return out;
}

// How many frames in a row look the same.
std::vector<int64_t> runs(const at::Tensor& video_CFHW) {
  std::vector<int64_t> out = {1};
  for (int64_t f = 1; f < video_CFHW.size(1); ++f) {
    if (at::equal(video_CFHW.select(1, f), video_CFHW.select(1, f - 1)))
      ++out.back();
    else
      out.push_back(1);
  }
  return out;
}

DataConfig config_of(const std::string& path, const std::vector<int64_t>& frames, double fps) {
  DataConfig config;
  config.path = path;
  config.frames = frames;
  config.height = 48;
  config.width = 64;
  config.fps = fps;
  return config;
}

std::string reason_of(const std::string& path) {
  try {
    probe_media(path);
  } catch (const MediaError& error) {
    return error.what();
  }
  return "";
}

// 100 counted frames at 25 per second with a gap of `gap_s` before frame 50.
void make_gapped(const std::string& path, int gap_s) {
  make_counting_video(path, 100, "25",
                      {"-vf", "setpts='(N/25+if(gte(N,50)," + std::to_string(gap_s) + ",0))/TB'", "-vsync",
                       "passthrough", "-c:v", "libx264", "-bf", "2", "-g", "25"});
}

}  // namespace

TEST_CASE("A frame is shown while it is on screen") {
  // Holds of 2, 2 and 0.2 s; then of 1, 2 and 0.25 s.
  CHECK(runs(clip_of(kData + "pictures/long_holds.gif", 0, 8, 34, 96, 160)) == std::vector<int64_t>{16, 16, 2});
  CHECK(runs(clip_of(kData + "pictures/long_holds.gif", 1, 8, 26, 96, 160)) == std::vector<int64_t>{8, 16, 2});
  for (const std::string name : {"holds.gif", "holds.png"}) {
    INFO(name);
    const std::string path = kData + "pictures/" + name;
    const MediaInfo info = probe_media(path);
    CHECK(info.duration_s == Approx(3.25));
    CHECK(runs(clip_of(path, 0, 16, 52, 48, 64)) == std::vector<int64_t>{16, 32, 4});
    CHECK(runs(clip_of(path, 0, 24, 78, 48, 64)) == std::vector<int64_t>{24, 48, 6});
    const ClipPlan plan = plan_clips(config_of(path, {49, 53}, 16), kGeometry);
    CHECK(plan.clips.at(0).frames == 49);
  }
}

TEST_CASE("A hold of minutes in an animation is one clip of still frames, as its file says") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/hold.gif";
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=s=64x48:r=10", "-frames:v", "3", "-vf", "setpts='if(lt(N,2),N*0.1,60)/TB'",
          "-vsync", "passthrough", path});
  CHECK(runs(clip_of(path, 0, 8, 17, 48, 64)) == std::vector<int64_t>{1, 16});
}

TEST_CASE("Streams without presentation times and streams shorter than their file keep all frames") {
  for (const std::string name : {"h264_bframes_65.avi", "long_audio.flv", "bare_bframes_65.h264"}) {
    INFO(name);
    const std::string path = kData + "video/" + name;
    const ClipPlan plan = plan_clips(config_of(path, {1, 61, 65}, 16), kGeometry);
    REQUIRE(plan.clips.size() == 1);
    CHECK(plan.clips[0].frames == 65);
    CHECK(plan.clips[0].source_duration_s == Approx(65 / 16.0).margin(0.002));
    // The stored frames one by one, in order.
    const at::Tensor stored = ffmpeg_frames(path, "scale=64:48:flags=area", 48, 64).to(at::kDouble);
    const at::Tensor seen = clip_of(path, 0, 16, 65, 112, 192).to(at::kDouble);
    REQUIRE(stored.size(0) == 65);
    for (const int threads : {1, 3}) {
      const at::Tensor small = clip_of(path, 0, 16, 65, 112, 192, threads);
      CHECK(at::equal(small.to(at::kDouble), seen));
      const std::vector<int64_t> same = runs(small);
      CHECK(std::count(same.begin(), same.end(), 1) == int64_t(same.size()));
    }
  }
}

TEST_CASE("Frames before the zero of a Matroska clock, which carry no time, are not shown") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/before.mkv";
  // Half a second of 25 frames a second lies before zero, where Matroska has no times.
  make_counting_video(path, 40, "25",
                      {"-c:v", "libx264", "-bf", "2", "-output_ts_offset", "-0.48", "-avoid_negative_ts", "disabled"});
  CHECK(indices(path, 0, 25, 28) == run_of(12, 28));
  CHECK(indices(path, 0.4, 25, 5) == run_of(22, 5));
  CHECK(std::abs(probe_media(path).duration_s - 28.0 / 25) < 0.01);
}

TEST_CASE("B-frames without presentation times: clips from anywhere, to the last frame") {
  const TemporaryFolder folder;
  const std::string source = folder.path() + "/source.mp4";
  make_counting_video(source, 110, "25", {"-c:v", "libx264", "-bf", "3", "-g", "24"});
  const std::string packed = folder.path() + "/xvid.avi", simple = folder.path() + "/v.avi",
                    bare = folder.path() + "/v.h264";
  ffmpeg({"-i", source, "-c", "copy", simple});
  ffmpeg({"-i", source, "-c", "copy", "-f", "h264", bare});
  make_counting_video(packed, 110, "25", {"-c:v", "mpeg4", "-bf", "2", "-g", "24", "-q:v", "1", "-vtag", "XVID"});
  for (const std::string& path : {simple, packed, bare}) {
    INFO(path);
    CHECK(probe_media(path).duration_s == Approx(110 / 25.0).margin(0.002));
    for (const int threads : {1, 3}) {
      CHECK(indices(path, 0, 25, 110, threads) == run_of(0, 110));
      for (const int64_t first : {1, 23, 24, 25, 50, 71, 72, 95, 97, 100, 105})
        CHECK(indices(path, double(first) / 25, 25, 110 - first, threads) == run_of(first, 110 - first));
    }
  }
}

TEST_CASE("Sound that is longer than the picture does not hide it") {
  const TemporaryFolder folder;
  for (const std::string name : {"v.mkv", "v.mp4", "v.flv", "v.ts", "v.avi", "v.mov"}) {
    INFO(name);
    const std::string path = folder.path() + "/" + name, video = folder.path() + "/video.mp4";
    make_counting_video(video, 60, "25", {"-c:v", "libx264", "-bf", "2", "-g", "25"});
    ffmpeg({"-i", video, "-f", "lavfi", "-i", "sine=d=70:r=44100", "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a",
            name == "v.avi" || name == "v.ts" ? "mp2" : "aac", path});
    CHECK(probe_media(path).duration_s == Approx(60 / 25.0).margin(0.003));
    CHECK(indices(path, 0, 25, 60) == run_of(0, 60));
  }
}

TEST_CASE("A clock with a gap is split there; no clip stands still for it") {
  const TemporaryFolder folder;
  for (const std::string name : {"v.mp4", "v.mkv", "v.ts", "v.flv", "v.mov"})
    for (const int gap_s : {60, 7200}) {
      INFO(name << " with a gap of " << gap_s << " s");
      if (name == "v.flv" && gap_s > 60) continue;  // its muxer cannot say when the frames beside the gap are shown
      const std::string path = folder.path() + "/" + name;
      make_gapped(path, gap_s);
      const MediaInfo info = probe_media(path);
      REQUIRE(info.parts.size() == 2);
      CHECK(info.parts[0].end_s == Approx(2).margin(0.01));
      CHECK(info.parts[1].start_s == Approx(gap_s + 2).margin(0.01));
      CHECK(info.parts[1].end_s == Approx(gap_s + 4).margin(0.01));
      DataConfig config = config_of(path, {17}, 10);
      config.frame_extraction = "chunk";
      const ClipPlan plan = plan_clips(config, kGeometry);
      REQUIRE(plan.clips.size() == 2);
      CHECK(plan.gapped_files == 1);
      for (int64_t i = 0; i < 2; ++i) {
        const std::vector<int64_t> seen = indices(path, plan.clips[size_t(i)].start_s, 10, 17);
        CHECK(seen.front() == 50 * i);
        CHECK(seen.back() == 50 * i + 40);
      }
      config.frames = {33};
      CHECK_THROWS(plan_clips(config, kGeometry));  // neither part is long enough
      CHECK_THROWS_AS(indices(path, 1, 1, 13), MediaError);
    }
}

TEST_CASE("A clock that goes back, as of joined files, is refused with the reason") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  make_counting_video(root + "/v.mp4", 100, "25", {"-c:v", "libx264", "-bf", "2", "-g", "25"});
  ffmpeg({"-i", root + "/v.mp4", "-c", "copy", "-output_ts_offset", "50", root + "/late.ts"});
  ffmpeg({"-i", root + "/v.mp4", "-c", "copy", root + "/early.ts"});
  const std::string early = read_bytes(root + "/early.ts"), late = read_bytes(root + "/late.ts");
  write_bytes(root + "/back.ts", late + early);
  write_bytes(root + "/twice.ts", early + early);
  write_bytes(root + "/forth.ts", early + late);
  CHECK(reason_of(root + "/back.ts").find("corrupt: timestamps go back 5") == 0);
  CHECK(reason_of(root + "/twice.ts").find("corrupt: timestamps go back 4.0 s") == 0);
  const MediaInfo forth = probe_media(root + "/forth.ts");
  REQUIRE(forth.parts.size() == 2);
  CHECK(indices(root + "/forth.ts", forth.parts[1].start_s, 25, 50) == run_of(0, 50));
}

TEST_CASE("Parts between gaps") {
  const auto parts = frame_parts({3, 0, 1, 2, 50, 51, 100}, 101);
  REQUIRE(parts.size() == 3);
  CHECK(parts[0].end_s == 4);
  CHECK(parts[1].start_s == 50);
  CHECK(parts[1].end_s == 52);
  CHECK(parts[2].end_s == 101);
  CHECK(frame_parts({0, 1, 2}, 500).back().end_s == 3);  // the last frame does not stay for minutes
  CHECK(frame_parts({}, 5).size() == 1);
}

TEST_CASE("Interlaced and HDR videos are counted") {
  const TemporaryFolder folder;
  make_moving_video(folder.path() + "/interlaced.mp4", 30, "64x48", "10",
                    {"-c:v", "libx264", "-flags", "+ildct+ilme", "-vf", "setfield=tff"});
  make_moving_video(folder.path() + "/hdr.mp4", 30, "64x48", "10",
                    {"-c:v", "libx265", "-x265-params", "log-level=error:pools=1:transfer=smpte2084:colorprim=bt2020",
                     "-color_trc", "smpte2084", "-pix_fmt", "yuv420p10le"});
  make_moving_video(folder.path() + "/plain.mp4", 30, "64x48", "10", {"-c:v", "libx264", "-pix_fmt", "yuv420p"});
  const ClipPlan plan = plan_clips(config_of(folder.path(), {17}, 10), kGeometry);
  CHECK(plan.clips.size() == 3);
  CHECK(plan.interlaced_clips == 1);
  CHECK(plan.hdr_clips == 1);
  CHECK(plan_to_text(plan).find("1 clips are interlaced") != std::string::npos);
}

TEST_CASE("Frames per second are resampled from where a clip starts in any file") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/v.mp4";
  // Every other frame at 1/30 s, the others held for 1/5 s.
  make_counting_video(path, 40, "30",
                      {"-vf", "settb=1/90000,setpts='(floor(N/2)*(1/30+1/5)+mod(N,2)/30)/TB'", "-vsync", "passthrough",
                       "-enc_time_base", "1:90000", "-c:v", "libx264", "-bf", "2", "-g", "10"});
  const std::vector<double> times = frame_times(path);
  REQUIRE(times.size() == 40);
  for (const double fps : {8.0, 16.0, 24.0})
    for (const double start_s : {0.0, 0.31, 1.0}) {
      std::vector<int64_t> expected;
      for (int64_t k = 0; k < 25; ++k)
        expected.push_back(std::upper_bound(times.begin(), times.end(), start_s + double(k) / fps + 2e-3) -
                           times.begin() - 1);
      CHECK(indices(path, start_s, fps, 25) == expected);
    }
}
