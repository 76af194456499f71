#include "data/decode_bench.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "data/dataset.h"
#include "data/video_reader.h"

extern char** environ;

namespace vmoba::data {
namespace {

constexpr int kRuns = 3;
constexpr int64_t kMaxSamples = 64;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t decode_all(const std::string& path, int threads, int& stream) {
  VideoReader reader(path, threads);
  stream = reader.stream_index();
  TimedFrame frame;
  int64_t frames = 0;
  while (reader.next(frame)) ++frames;
  return frames;
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
  double ours_s = std::numeric_limits<double>::infinity(), ffmpeg_s = ours_s;
  int64_t frames = 0;
  int stream = 0;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    frames = decode_all(clip.path, static_cast<int>(threads), stream);
    ours_s = std::min(ours_s, seconds_since(start));
    ffmpeg_s = std::min(ffmpeg_s, run_ffmpeg(clip.path, threads, stream));
  }
  const auto rate = [&](double seconds) { return static_cast<double>(frames) / seconds; };
  std::string out = fmt::format("file     {} ({}x{}, {} frames, {} threads)\n", clip.path, clip.source_width,
                                clip.source_height, frames, threads);
  out += fmt::format("decode   {:9.1f} frames/s\n", rate(ours_s));
  out += ffmpeg_s > 0
             ? fmt::format(
                   "ffmpeg   {:9.1f} frames/s   (ffmpeg -threads {} -f null -, its start included); ours is {:.2f}x\n",
                   rate(ffmpeg_s), threads, ffmpeg_s / ours_s)
             : std::string("ffmpeg   not on the PATH, or it refuses the file\n");
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
