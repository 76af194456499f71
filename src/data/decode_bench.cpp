#include "data/decode_bench.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "core/elapsed.h"
#include "data/dataset.h"
#include "data/transforms.h"
#include "data/video_reader.h"

extern char** environ;

namespace vmoba::data {
namespace {

constexpr int kRuns = 3;
constexpr int64_t kMaxSamples = 64;

struct Pass {
  int64_t frames = 0;
  int stream = 0;
  double seconds = 0;
};

// Opens the file and decodes all of it; with `to_rgb` each frame becomes 8-bit RGB of its displayed size too.
Pass decode_all(const std::string& path, int threads, bool to_rgb) {
  Pass pass;
  const auto start = std::chrono::steady_clock::now();
  VideoReader reader(path, threads);
  const int64_t height = reader.info().displayed_height, width = reader.info().displayed_width;
  FrameScaler scaler(reader.info(), height, width, false);
  std::vector<uint8_t> rgb(to_rgb ? static_cast<size_t>(3 * height * width) : 0);
  TimedFrame frame;
  for (; reader.next(frame); ++pass.frames)
    if (to_rgb) scaler.run(*frame.frame, {rgb.data(), rgb.data() + height * width, rgb.data() + 2 * height * width});
  pass.stream = reader.stream_index();
  pass.seconds = seconds_since(start);
  return pass;
}

// Seconds of `ffmpeg -threads N -i path -map 0:stream -f null -`, or a negative number where it cannot run.
double run_ffmpeg(const std::string& path, int64_t threads, int stream) {
  std::vector<std::string> words = {"ffmpeg",   "-v",
                                    "error",    "-nostdin",
                                    "-threads", std::to_string(threads),
                                    "-i",       "file:" + path,
                                    "-map",     fmt::format("0:{}", stream),
                                    "-f",       "null",
                                    "-"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  const auto start = std::chrono::steady_clock::now();
  pid_t child = 0;
  int status = -1;
  const bool started = posix_spawnp(&child, "ffmpeg", &actions, nullptr, arguments.data(), environ) == 0;
  posix_spawn_file_actions_destroy(&actions);
  if (!started || waitpid(child, &status, 0) != child || status != 0) return -1;
  return seconds_since(start);
}

std::string bench_file(const Clip& clip, int64_t threads) {
  constexpr double kNever_s = std::numeric_limits<double>::infinity();
  double decode_s = kNever_s, rgb_s = kNever_s, ffmpeg_s = kNever_s;
  Pass pass;
  for (int run = 0; run < kRuns; ++run) {
    pass = decode_all(clip.path, static_cast<int>(threads), false);
    decode_s = std::min(decode_s, pass.seconds);
    ffmpeg_s = std::min(ffmpeg_s, run_ffmpeg(clip.path, threads, pass.stream));
    rgb_s = std::min(rgb_s, decode_all(clip.path, static_cast<int>(threads), true).seconds);
  }
  const auto rate = [&](double seconds) { return static_cast<double>(pass.frames) / seconds; };
  std::string out = fmt::format("file     {} ({}x{}, {} frames, {} threads)\n", clip.path, clip.source_width,
                                clip.source_height, pass.frames, threads);
  out += fmt::format("decode   {:9.1f} frames/s\n", rate(decode_s));
  out += ffmpeg_s > 0
             ? fmt::format(
                   "ffmpeg   {:9.1f} frames/s   (ffmpeg -threads {} -f null -, its start included); ours is {:.2f}x\n",
                   rate(ffmpeg_s), threads, ffmpeg_s / decode_s)
             : std::string("ffmpeg   not on the PATH, or it refuses the file\n");
  out += fmt::format("rgb      {:9.1f} frames/s   (decoded and converted at full size)\n", rate(rgb_s));
  return out;
}

}  // namespace

std::string bench_decoding(const ClipPlan& plan, const DataConfig& config, uint64_t seed) {
  const auto longest = std::max_element(plan.clips.begin(), plan.clips.end(), [](const Clip& a, const Clip& b) {
    return a.source_duration_s < b.source_duration_s;
  });
  const int64_t threads = decode_threads(config);
  std::string out = longest->is_image ? std::string() : bench_file(*longest, threads);

  const int64_t samples = std::min(kMaxSamples, SampleOrder(plan, seed, 1).samples_per_epoch());
  int64_t frames = 0;
  const auto start = std::chrono::steady_clock::now();
  SampleStream stream(plan, config, seed, 1, 0, 1);
  for (int64_t i = 0; i < samples; ++i) frames += stream.next().video_CFHW.size(1);
  const double elapsed_s = seconds_since(start);
  out += fmt::format(
      "training {:9.1f} frames/s, {:.2f} clips/s   ({} samples: open, seek, decode, crop, scale; {} threads)\n",
      static_cast<double>(frames) / elapsed_s, static_cast<double>(samples) / elapsed_s, samples, threads);
  return out;
}

}  // namespace vmoba::data
