#include "data/clip_plan_print.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/check.h"
#include "data/dataset.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/paths.h"
#include "support/process.h"
#include "support/stderr_capture.h"

using namespace vmoba::data;
using namespace vmoba::test;
using nlohmann::json;

namespace {

constexpr ClipGeometry kGeometry{4, 16};

// 64x48 clips of the given frame counts at 10 frames per second.
DataConfig config_of(const std::string& path, const std::vector<int64_t>& frames) {
  DataConfig config;
  config.path = path;
  config.frames = frames;
  config.height = 48;
  config.width = 64;
  config.fps = 10;
  return config;
}

void make_video(const std::string& path, int64_t frames, const std::string& size = "64x48") {
  make_moving_video(path, frames, size, "10", {"-c:v", "libx264", "-pix_fmt", "yuv420p"});
}

// One of each kind of file that a data set may hold by accident, and two that are fine.
void make_mixed_folder(const std::string& root) {
  make_video(root + "/a_good.mp4", 30);
  make_video(root + "/b_good.mp4", 20, "128x96");
  write_bytes(root + "/a_good.txt", "the first");
  make_video(root + "/short.mp4", 3);
  const std::string bytes = read_bytes(root + "/a_good.mp4");
  write_bytes(root + "/cut.mp4", bytes.substr(0, bytes.size() / 2));
  write_bytes(root + "/empty.mp4", "");
  write_bytes(root + "/noise.mp4", std::string(5000, '\x37'));
  ffmpeg({"-f", "lavfi", "-i", "sine=d=1", root + "/sound.mp4"});
  ffmpeg({"-f", "lavfi", "-i", "color=red:s=64x48", "-frames:v", "1", "-update", "1", root + "/picture.png"});
}

std::map<std::string, std::string> reasons(const ClipPlan& plan, const std::string& root) {
  std::map<std::string, std::string> out;
  for (const DroppedClip& dropped : plan.dropped) {
    CHECK(out.emplace(dropped.path.substr(root.size() + 1), dropped.reason).second);  // each once
  }
  return out;
}

size_t count_of(const std::string& text, const std::string& word) {
  size_t count = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++count;
  return count;
}

bool starts_with(const std::string& text, const std::string& head) {
  return text.compare(0, head.size(), head) == 0;
}

}  // namespace

TEST_CASE("A model that is given the first frame drops clips that have no other, and says so") {
  const TemporaryFolder folder;
  make_mixed_folder(folder.path());
  ClipGeometry geometry = kGeometry;
  geometry.least_frames = 5;
  const ClipPlan plan = plan_clips(config_of(folder.path(), {1, 17}), geometry);
  for (const Clip& clip : plan.clips) CHECK(clip.frames == 17);
  const std::map<std::string, std::string> dropped = reasons(plan, folder.path());
  CHECK(dropped.at("short.mp4") ==
        "a clip of 1 frame(s): a model that is given the first frame needs at least 5 (model.task)");
  int64_t images = 0;
  for (const auto& [name, reason] : dropped) images += starts_with(reason, "an image of 1 frame(s)");
  CHECK(images == 1);
}

TEST_CASE("Every file is a clip or is dropped once with its reason") {
  const TemporaryFolder folder;
  make_mixed_folder(folder.path());
  DataConfig config = config_of(folder.path(), {5, 17});
  ClipPlan plan;
  const std::string log = capture_stderr([&] { plan = plan_clips(config, kGeometry); });

  REQUIRE(plan.clips.size() == 3);
  CHECK(plan.clips[0].path == folder.path() + "/a_good.mp4");
  CHECK(plan.clips[0].caption == "the first");
  CHECK(plan.clips[0].frames == 17);
  CHECK(plan.clips[1].path == folder.path() + "/b_good.mp4");
  CHECK(plan.clips[1].source_width == 128);
  CHECK(plan.clips[2].is_image);
  CHECK(plan.clips[2].frames == 1);
  CHECK(plan.missing_captions == 2);
  CHECK(plan.upscaled_clips == 0);

  std::map<std::string, std::string> dropped = reasons(plan, folder.path());
  REQUIRE(dropped.size() == 5);
  CHECK(
      starts_with(dropped["short.mp4"], "too short: 0.30 s give 3 frames at 10 fps, the smallest of data.frames is 5"));
  CHECK(starts_with(dropped["cut.mp4"], "corrupt:"));
  CHECK(starts_with(dropped["empty.mp4"], "empty:"));
  CHECK(starts_with(dropped["noise.mp4"], "corrupt:"));
  CHECK(starts_with(dropped["sound.mp4"], "audio only:"));
  CHECK(log.find("dropped 5 files or lines") != std::string::npos);
  for (const auto& [name, reason] : dropped) CHECK(count_of(log, "/" + name) == 1);

  // (1 + (F - 1) / 4) * 48 / 16 * 64 / 16 tokens.
  REQUIRE(plan.buckets.size() == 2);
  CHECK(plan.buckets[0].frames == 1);
  CHECK(plan.buckets[0].tokens == 12);
  CHECK(plan.buckets[0].clips == 1);
  CHECK(plan.buckets[1].frames == 17);
  CHECK(plan.buckets[1].tokens == 60);
  CHECK(plan.buckets[1].clips == 2);

  config.images = false;
  const ClipPlan videos = plan_clips(config, kGeometry);
  CHECK(videos.clips.size() == 2);
  CHECK(reasons(videos, folder.path())["picture.png"].find("data.images") != std::string::npos);
}

TEST_CASE("The plan does not depend on the number of threads") {
  const TemporaryFolder folder;
  make_mixed_folder(folder.path());
  DataConfig config = config_of(folder.path(), {5, 17});
  config.decode_threads = 1;
  const std::string one = plan_to_json(plan_clips(config, kGeometry));
  for (const int64_t threads : {2, 7, 16}) {
    config.decode_threads = threads;
    CHECK(plan_to_json(plan_clips(config, kGeometry)) == one);
  }
}

TEST_CASE("Data that are all unusable stop with the list") {
  const TemporaryFolder folder;
  write_bytes(folder.path() + "/empty.mp4", "");
  write_bytes(folder.path() + "/noise.mkv", "noise");
  try {
    plan_clips(config_of(folder.path(), {5}), kGeometry);
    FAIL("accepted");
  } catch (const vmoba::Error& error) {
    const std::string message = error.what();
    CHECK(error.kind() == vmoba::ErrorKind::kInput);
    CHECK(message.find("data.path") != std::string::npos);
    CHECK(message.find("/empty.mp4: empty:") != std::string::npos);
    CHECK(message.find("/noise.mkv: corrupt:") != std::string::npos);
  }
  const TemporaryFolder nothing;
  CHECK_THROWS_AS(plan_clips(config_of(nothing.path(), {5}), kGeometry), vmoba::Error);
}

TEST_CASE("Manifest lines are dropped with file and line; a file may be named twice") {
  const TemporaryFolder folder;
  make_video(folder.path() + "/v.mp4", 12);
  write_bytes(folder.path() + "/metadata.jsonl",
              "{\"video\": \"v.mp4\", \"prompt\": \"one\"}\n{\"video\": \"gone.mp4\", \"prompt\": \"two\"}\n"
              "{\"prompt\": \"three\"}\n{\"video\": \"v.mp4\", \"prompt\": \"four\"}\n");
  DataConfig config = config_of(folder.path() + "/metadata.jsonl", {9});
  config.caption_prefix = "film: ";
  const ClipPlan plan = plan_clips(config, kGeometry);
  REQUIRE(plan.clips.size() == 2);
  CHECK(plan.clips[0].caption == "film: one");
  CHECK(plan.clips[1].caption == "film: four");
  REQUIRE(plan.dropped.size() == 2);
  const auto find = [&](const std::string& word) {
    return std::count_if(plan.dropped.begin(), plan.dropped.end(),
                         [&](const DroppedClip& d) { return d.reason.find(word) != std::string::npos; });
  };
  CHECK(find("missing: no such file (metadata.jsonl:2)") == 1);
  CHECK(find("metadata.jsonl:3:") == 1);
}

TEST_CASE("The part, picture, rate and repeats of a manifest line are honoured") {
  const std::string root = fixtures() + "/data/manifest/";
  DataConfig config = config_of(root + "cut_and_crop.json", {1, 17, 33, 65});
  config.fps = 16;
  config.height = 112;
  config.width = 96;
  const ClipPlan plan = plan_clips(config, kGeometry);
  REQUIRE(plan.clips.size() == 1);
  CHECK(plan.clips[0].start_s == 2);
  CHECK(plan.clips[0].frames == 33);
  CHECK(plan.clips[0].crop == CropBox{0, 0, 96, 112});
  CHECK(plan.clips[0].fps == 16);
  CHECK(plan.retimed_clips == 0);
  REQUIRE(plan.notes.size() == 1);
  CHECK(plan.notes[0] == "cut_and_crop.json: keys that are not used: num_frames");

  const std::atomic<bool> cancel{false};
  vmoba::Outage outage;
  const at::Tensor seen = decode_planned_clip(plan, config, 0, plan.clips[0].start_s, false, 1, outage, cancel);
  const at::Tensor all = ffmpeg_frames(root + "clip.mp4", "", 112, 192);
  const at::Tensor wanted = all.slice(0, 32, 65).slice(3, 0, 96).permute({1, 0, 2, 3});
  CHECK((seen.to(at::kDouble) - wanted.to(at::kDouble)).abs().mean().item<double>() < 3);
}

TEST_CASE("Lines cut, repeat and retime a file that other lines take whole") {
  const TemporaryFolder folder;
  make_video(folder.path() + "/v.mp4", 40);  // 4 s
  write_bytes(folder.path() + "/metadata.jsonl",
              "{\"path\": \"v.mp4\"}\n"
              "{\"path\": \"v.mp4\", \"start\": 1, \"end\": 2.2, \"repeats\": 3}\n"
              "{\"path\": \"v.mp4\", \"start\": 3.5, \"end\": 9}\n"
              "{\"path\": \"v.mp4\", \"start\": 5}\n"
              "{\"path\": \"v.mp4\", \"fps\": 5}\n"
              "{\"path\": \"v.mp4\", \"fps\": 9.99}\n"
              "{\"path\": \"v.mp4\", \"crop\": [0, 65, 0, 48]}\n");
  DataConfig config = config_of(folder.path(), {5, 9, 33});
  config.num_repeats = 2;
  const ClipPlan plan = plan_clips(config, kGeometry);
  REQUIRE(plan.clips.size() == 5);
  CHECK(plan.clips[0].frames == 33);
  CHECK(plan.clips[0].repeats == 2);
  CHECK(plan.clips[1].start_s == 1);
  CHECK(plan.clips[1].frames == 9);
  CHECK(plan.clips[1].repeats == 6);
  CHECK(plan.clips[2].start_s == 3.5);
  CHECK(plan.clips[2].frames == 5);
  CHECK(plan.clips[3].fps == 20);  // meant at half the speed: each stored frame stands for two of the clip
  CHECK(plan.clips[3].frames == 33);
  CHECK(plan.clips[4].fps == 10);
  CHECK(plan.retimed_clips == 1);
  REQUIRE(plan.dropped.size() == 2);
  CHECK(plan.dropped[0].reason.find("too short") == 0);
  CHECK(plan.dropped[1].reason.find("within the picture of 64 x 48") != std::string::npos);

  config.frame_extraction = "random";
  const ClipPlan drawn = plan_clips(config, kGeometry);
  CHECK(drawn.clips[1].start_s == 1);
  CHECK(drawn.clips[1].slack_s == Approx(1.2 - 0.8 - 0.05).margin(0.01));
}

TEST_CASE("Frame numbers are refused where they say no time, seconds are taken") {
  const TemporaryFolder folder;
  // A second of 30 frames, then 10 a second.
  ffmpeg({"-f", "lavfi", "-i", "testsrc=s=64x48:r=30", "-frames:v", "60", "-vf",
          "setpts='if(lt(N,30),N/30,1+(N-30)/10)/TB'", "-fps_mode", "vfr", "-c:v", "libx264", "-pix_fmt", "yuv420p",
          folder.path() + "/vfr.mp4"});
  make_video(folder.path() + "/v.mp4", 40);
  write_bytes(folder.path() + "/metadata.jsonl",
              "{\"path\": \"vfr.mp4\", \"start_frame\": 40}\n"
              "{\"path\": \"vfr.mp4\", \"cut\": [0, 20]}\n"
              "{\"path\": \"vfr.mp4\", \"start_frame\": 0}\n"
              "{\"path\": \"vfr.mp4\", \"start\": 2}\n"
              "{\"path\": \"v.mp4\", \"start_frame\": 20}\n");
  const ClipPlan plan = plan_clips(config_of(folder.path(), {5}), kGeometry);
  REQUIRE(plan.clips.size() == 3);
  CHECK(plan.clips[1].start_s == 2);
  CHECK(plan.clips[2].start_s == 2);
  REQUIRE(plan.dropped.size() == 2);
  for (const DroppedClip& dropped : plan.dropped)
    CHECK(dropped.reason.find("expected start and end in seconds for a video of variable frame rate") == 0);
}

TEST_CASE("A crop is of the displayed picture") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/v.mp4";
  // Left half black, right half white; shown turned clockwise, so that the upper half is black.
  ffmpeg({"-f", "lavfi", "-i", "color=black:s=64x48:r=10,drawbox=x=32:w=32:h=48:color=white:t=fill", "-frames:v", "5",
          "-c:v", "libx264", "-pix_fmt", "yuv420p", path});
  set_display_matrix(path, 0, 1, -1, 0);
  write_bytes(folder.path() + "/m.jsonl",
              "{\"path\": \"v.mp4\", \"crop\": [0, 48, 0, 30]}\n{\"path\": \"v.mp4\", \"crop\": [0, 48, 34, 64]}\n");
  DataConfig config = config_of(folder.path() + "/m.jsonl", {5});
  const ClipPlan plan = plan_clips(config, kGeometry);
  REQUIRE(plan.clips.size() == 2);
  const std::atomic<bool> cancel{false};
  vmoba::Outage outage;
  CHECK(decode_planned_clip(plan, config, 0, 0, false, 1, outage, cancel).max().item<int>() < 30);
  CHECK(decode_planned_clip(plan, config, 1, 0, false, 1, outage, cancel).min().item<int>() > 225);
}

TEST_CASE("Captions that are NaN count as missing") {
  const ClipPlan plan = plan_clips(config_of(fixtures() + "/data/manifest/nan_caption.jsonl", {5}), kGeometry);
  CHECK(plan.clips.size() == 2);
  CHECK(plan.missing_captions == 1);
  CHECK(plan.dropped.empty());
}

TEST_CASE("Several data sets have lengths, sizes, repeats and prefixes of their own") {
  const TemporaryFolder folder;
  write_bytes(folder.path() + "/one/a.txt", "first");
  write_bytes(folder.path() + "/two/b.txt", "second");
  make_video(folder.path() + "/one/a.mp4", 30);
  make_video(folder.path() + "/two/b.mp4", 30, "128x96");
  DataConfig config = config_of("", {17});
  config.caption_prefix = "film: ";
  config.num_repeats = 2;
  config.sets.resize(2);
  config.sets[0].path = folder.path() + "/one";
  config.sets[1].path = folder.path() + "/two";
  config.sets[1].repeats = 3;
  config.sets[1].height = 96;
  config.sets[1].width = 128;
  config.sets[1].frames = {5};
  config.sets[1].caption_prefix = "near: ";
  const ClipPlan plan = plan_clips(config, kGeometry);
  REQUIRE(plan.clips.size() == 2);
  REQUIRE(plan.buckets.size() == 2);
  CHECK(plan.clips[0].caption == "film: first");
  CHECK(plan.clips[0].repeats == 2);
  CHECK(plan.clips[0].frames == 17);
  CHECK(plan.clips[1].caption == "film: near: second");
  CHECK(plan.clips[1].repeats == 6);
  const Bucket& bucket = plan.buckets[size_t(plan.clips[1].bucket)];
  CHECK(bucket.frames == 5);
  CHECK(bucket.height == 96);
  CHECK(bucket.width == 128);

  config.path = folder.path();
  CHECK_THROWS_AS(plan_clips(config, kGeometry), vmoba::Error);
  config.path.clear();
  config.sets[0].path = folder.path() + "/none";
  CHECK_THROWS_AS(plan_clips(config, kGeometry), vmoba::Error);
}

TEST_CASE("A video takes the largest frame count that it can fill, rounded down to 4n+1") {
  const TemporaryFolder folder;
  for (const int64_t frames : {4, 5, 16, 17, 18, 40})
    make_video(folder.path() + "/v" + std::to_string(100 + frames) + ".mp4", frames);
  const ClipPlan plan = plan_clips(config_of(folder.path(), {5, 20}), kGeometry);  // 20 is rounded down to 17
  std::vector<int64_t> got;
  for (const Clip& clip : plan.clips) got.push_back(clip.frames);
  CHECK(got == std::vector<int64_t>{5, 5, 17, 17, 17});
  CHECK(plan.dropped.size() == 1);
}

TEST_CASE("Clips per video by extraction") {
  const TemporaryFolder folder;
  make_video(folder.path() + "/v.mp4", 40);  // 4 s: five frames need 0.4 s and half a stored frame
  DataConfig config = config_of(folder.path(), {5});
  const auto starts = [&](const std::string& extraction) {
    config.frame_extraction = extraction;
    std::vector<double> out;
    for (const Clip& clip : plan_clips(config, kGeometry).clips) {
      out.push_back(clip.start_s);
      CHECK(clip.random_start == (extraction == "random"));
    }
    return out;
  };
  CHECK(starts("head") == std::vector<double>{0});
  CHECK(starts("random") == std::vector<double>{0});
  const std::vector<double> chunks = starts("chunk");
  REQUIRE(chunks.size() == 8);
  for (size_t i = 0; i < 8; ++i) CHECK(chunks[i] == Approx(0.5 * static_cast<double>(i)));
  config.clips_per_video = 3;
  const std::vector<double> uniform = starts("uniform");
  REQUIRE(uniform.size() == 3);
  CHECK(uniform[0] == 0);
  CHECK(uniform[1] == Approx(1.775).margin(0.01));
  CHECK(uniform[2] == Approx(3.55).margin(0.01));
}

TEST_CASE("Aspect buckets sort by shape; small sources are counted") {
  const TemporaryFolder folder;
  make_video(folder.path() + "/high.mp4", 6, "96x192");
  make_video(folder.path() + "/small.mp4", 6, "32x24");
  make_video(folder.path() + "/wide.mp4", 6, "192x96");
  DataConfig config = config_of(folder.path(), {5});
  config.aspect_buckets = 3;
  const ClipPlan plan = plan_clips(config, kGeometry);
  REQUIRE(plan.clips.size() == 3);
  const auto bucket = [&](size_t i) { return plan.buckets[static_cast<size_t>(plan.clips[i].bucket)]; };
  CHECK(bucket(0).height > bucket(0).width);
  CHECK(bucket(1).height == 48);
  CHECK(bucket(1).width == 64);
  CHECK(bucket(2).width > bucket(2).height);
  CHECK(plan.upscaled_clips == 1);
}

TEST_CASE("The printed plan, for scripts and for people") {
  const TemporaryFolder folder;
  make_mixed_folder(folder.path());
  write_bytes(folder.path() + "/caf\xE9.mp4", "");  // a file name that is not UTF-8
  const ClipPlan plan = plan_clips(config_of(folder.path(), {5, 17}), kGeometry);
  const json printed = json::parse(plan_to_json(plan));
  REQUIRE(printed.at("clips").size() == 3);
  CHECK(printed["clips"][0].at("path") == folder.path() + "/a_good.mp4");
  CHECK(printed["clips"][0].at("caption") == "the first");
  CHECK(printed["clips"][0].at("frames") == 17);
  CHECK(printed["clips"][0].at("tokens") == 60);
  CHECK(printed["clips"][0].at("bucket") == 1);
  CHECK(printed.at("buckets").size() == 2);
  CHECK(printed["buckets"][1].at("clips") == 2);
  REQUIRE(printed.at("dropped").size() == 6);
  for (const json& dropped : printed["dropped"]) CHECK(dropped.at("reason").get<std::string>().size() > 4);

  const std::string text = plan_to_text(plan);
  CHECK(starts_with(text, "3 clips in 2 buckets, 6 dropped\n"));
  for (const Clip& clip : plan.clips) CHECK(text.find(clip.path) != std::string::npos);
  for (const DroppedClip& dropped : plan.dropped)
    CHECK(text.find(dropped.path + ": " + dropped.reason) != std::string::npos);
}

TEST_CASE("A clip on one line, whose hash is that of the clips of a run") {
  ClipPlan plan;
  plan.buckets = {{17, 32, 64, 40, 9}};
  Clip clip;
  clip.path = "/there/caf\xE9.mp4";
  clip.caption = "a \"gold\" mirror";
  clip.start_s = 1.5;
  clip.fps = 16;
  clip.frames = 17;
  clip.source_width = 64;
  clip.source_height = 48;
  clip.source_fps = 24;
  clip.source_duration_s = 4;
  plan.clips = {clip};
  // Written by hand from what earlier versions hashed: keys in order, whole seconds with a point.
  CHECK(clip_to_json(plan, plan.clips.front(), "x.mp4") ==
        R"({"bucket":{"frames":17,"height":32,"tokens":40,"width":64},"caption":"a \"gold\" mirror","fps":16.0,)"
        R"("frames":17,"is_image":false,"path":"x.mp4","repeats":1,"source_duration_s":4.0,"source_fps":24.0,)"
        R"("source_height":48,"source_width":64,"start_s":1.5,"tokens":40})");
  CHECK(clip_to_json(plan, plan.clips.front(), clip.path).find("caf\xEF\xBF\xBD.mp4") != std::string::npos);
}

TEST_CASE("Files with fewer frames a second than the clips are counted") {
  const TemporaryFolder folder;
  make_moving_video(folder.path() + "/slow.mp4", 6, "64x48", "2", {"-c:v", "libx264", "-pix_fmt", "yuv420p"});
  make_video(folder.path() + "/same.mp4", 30);
  const auto remarks = plan_remarks(plan_clips(config_of(folder.path(), {5, 17}), kGeometry));
  CHECK(std::any_of(remarks.begin(), remarks.end(), [](const std::string& text) {
    return starts_with(text, "1 clips are of files with fewer frames a second than data.fps");
  }));
}

TEST_CASE("The shipped sample clips are all usable") {
  DataConfig config;
  config.path = source_dir() + "/assets/clips";
  config.frames = {17};
  config.height = 64;
  config.width = 112;
  const ClipPlan plan = plan_clips(config, kGeometry);
  CHECK(plan.clips.size() >= 8);
  CHECK(plan.dropped.empty());
  CHECK(plan.missing_captions == 0);
  for (const Clip& clip : plan.clips) CHECK(clip.frames == 17);
}

TEST_CASE("A named file that is away for a second is planned all the same, in the same place") {
  const TemporaryFolder folder;
  for (const char* name : {"a.mp4", "b.mp4", "c.mp4"}) make_video(folder.path() + "/" + name, 20);
  write_bytes(folder.path() + "/metadata.jsonl",
              "{\"video\": \"a.mp4\", \"caption\": \"1\"}\n{\"video\": \"b.mp4\", \"caption\": \"2\"}\n"
              "{\"video\": \"c.mp4\", \"caption\": \"3\"}\n");
  const std::string file = folder.path() + "/b.mp4", away = folder.path() + "/b.away";
  std::filesystem::rename(file, away);
  std::thread back([&] {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    std::filesystem::rename(away, file);
  });
  ClipPlan plan;
  const std::string log = capture_stderr([&] { plan = plan_clips(config_of(folder.path(), {5}), kGeometry); });
  back.join();
  REQUIRE(plan.clips.size() == 3);
  CHECK(plan.clips[1].caption == "2");
  CHECK(plan.dropped.empty());
  CHECK(log.find("waiting for the storage") != std::string::npos);
  CHECK(log.find("b.mp4") != std::string::npos);
}

TEST_CASE("data.max_failed counts files that cannot be read, and nothing that the configuration drops") {
  ClipPlan plan;
  plan.files = 300;
  DataConfig config;
  const auto refusal = [&](double share) -> std::string {
    config.max_failed = share;
    try {
      check_failures(config, plan);
    } catch (const vmoba::Error& e) {
      return e.what();
    }
    return "";
  };
  for (int i = 0; i < 50; ++i) plan.dropped.push_back({"short" + std::to_string(i), "too short"});
  CHECK(refusal(0).empty());
  for (int i = 0; i < 3; ++i) plan.dropped.push_back({"bad" + std::to_string(i), "corrupt", true});
  plan.dropped.push_back({"bad0", "corrupt", true});  // named twice in a manifest
  CHECK(refusal(0.01).empty());
  plan.dropped.push_back({"bad3", "missing", true});
  const std::string text = refusal(0.01);
  CHECK(text.find("data.max_failed") != std::string::npos);
  CHECK(text.find("bad3") != std::string::npos);
  CHECK(text.find("short1") == std::string::npos);
  CHECK(refusal(1).empty());
  plan.files = 4;  // one may always fail, unless none may
  plan.dropped.assign(1, {"bad", "corrupt", true});
  CHECK(refusal(0.01).empty());
  CHECK_FALSE(refusal(0).empty());
}

TEST_CASE("Planning tells how far it is") {
  const TemporaryFolder folder;
  for (const char* name : {"a.mp4", "b.mp4", "c.mp4"}) make_video(folder.path() + "/" + name, 20);
  std::vector<std::pair<int64_t, int64_t>> told;
  plan_clips(config_of(folder.path(), {5}), kGeometry,
             [&](int64_t done, int64_t files) { told.emplace_back(done, files); });
  REQUIRE_FALSE(told.empty());
  CHECK(told.back() == std::pair<int64_t, int64_t>(3, 3));
}
