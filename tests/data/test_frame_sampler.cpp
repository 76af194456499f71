#include "data/frame_sampler.h"

#include <cmath>

#include "support/catch.h"

using namespace vmoba::data;

namespace {

// Feeds stored frames at `times` and returns, for each frame of the clip, the stored frame that it shows.
std::vector<int64_t> sample(const std::vector<double>& times, double last_duration, double start_s, double fps,
                            int64_t count, bool steady = true) {
  ShownFrames shown(start_s, fps, count, {times.size() > 1 ? 1 / (times[1] - times[0]) : 1, steady});
  std::vector<int64_t> out;
  for (size_t i = 0; i < times.size(); ++i) {
    const int64_t count_of =
        i + 1 < times.size() ? shown.take(times[i], times[i + 1]) : shown.take_last(times[i] + last_duration);
    out.insert(out.end(), static_cast<size_t>(count_of), static_cast<int64_t>(i));
  }
  return out;
}

std::vector<double> constant_rate(double fps, int64_t frames) {
  std::vector<double> times;
  for (int64_t i = 0; i < frames; ++i) times.push_back(static_cast<double>(i) / fps);
  return times;
}

}  // namespace

TEST_CASE("Equal rates copy every frame, half the rate every other") {
  CHECK(sample(constant_rate(16, 5), 1.0 / 16, 0, 16, 5) == std::vector<int64_t>{0, 1, 2, 3, 4});
  CHECK(sample(constant_rate(32, 9), 1.0 / 32, 0, 16, 5) == std::vector<int64_t>{0, 2, 4, 6, 8});
  CHECK(sample(constant_rate(24, 6), 1.0 / 24, 2.0 / 24, 24, 3) == std::vector<int64_t>{2, 3, 4});
}

TEST_CASE("Ties go to the earlier frame, whatever the rounding of the times") {
  // 25 -> 50: every odd instant lies in the middle of two frames.
  CHECK(sample(constant_rate(25, 4), 1.0 / 25, 0, 50, 7) == std::vector<int64_t>{0, 0, 1, 1, 2, 2, 3});
  // 30 -> 20: instants 0, 1.5, 3, 4.5 frames.
  CHECK(sample(constant_rate(30, 7), 1.0 / 30, 0, 20, 4) == std::vector<int64_t>{0, 1, 3, 4});
}

TEST_CASE("29.97 to 16 frames per second by hand") {
  // Instant k is at 1.8731 k stored frames: 0, 1.87, 3.75, 5.62, 7.49, 9.37, 11.24, 13.11, 14.98.
  CHECK(sample(constant_rate(30000.0 / 1001, 17), 0.0334, 0, 16, 9) ==
        std::vector<int64_t>{0, 2, 4, 6, 7, 9, 11, 13, 15});
}

TEST_CASE("Variable rate: the frame that is on screen, repeated or skipped") {
  const std::vector<double> times = {0, 0.5, 0.52, 0.54, 1.0};
  // Instants 0, .125, .25, .375, .5, .625, .75, .875, 1.0.
  CHECK(sample(times, 0.1, 0, 8, 9, false) == std::vector<int64_t>{0, 0, 0, 0, 1, 3, 3, 3, 4});
}

TEST_CASE("A frame that is held stays until the next one's time") {
  // 30 per second, frame 3 held for a second; 1.1 is frame 4's time.
  const std::vector<double> times = {0, 1 / 30.0, 2 / 30.0, 3 / 30.0, 1.1, 1.1 + 1 / 30.0};
  std::vector<int64_t> expected = {0, 2};
  expected.insert(expected.end(), 16, 3);  // instants 2/16 to 17/16
  expected.push_back(5);                   // 18/16 = 1.125, 8 ms before frame 5
  CHECK(sample(times, 1 / 30.0, 0, 16, 19) == expected);
  // A source of one frame per second: shown while on screen, not from half a second before.
  std::vector<int64_t> slow;
  for (const int64_t frame : {0, 1, 2}) slow.insert(slow.end(), 8, frame);
  CHECK(sample({0, 1, 2}, 1, 0, 8, 24) == slow);
  // Times rounded down or up to a millisecond do not cost a frame.
  CHECK(sample({0, 0.334, 0.667, 1.0}, 0.333, 0, 3, 4) == std::vector<int64_t>{0, 1, 2, 3});
}

TEST_CASE("The last frame serves as long as it is displayed") {
  CHECK(sample({0, 0.1}, 0.1, 0, 10, 5) == std::vector<int64_t>{0, 1, 1});
  CHECK(sample({0}, 1.0, 0, 4, 4) == std::vector<int64_t>{0, 0, 0, 0});
}

TEST_CASE("Frames that a video can fill") {
  CHECK(fillable_frames(1.0, {16, true}, 0, 16) == 16);  // 16 frames at 16
  CHECK(fillable_frames(1.0, {30, true}, 0, 16) == 16);  // last instant 15/16 = 0.9375, last stored frame 0.9667
  CHECK(fillable_frames(81.0 / 24, {24, true}, 0, 24) == 81);
  CHECK(fillable_frames(81.0 / 24, {24, true}, 1, 24) == 57);
  CHECK(fillable_frames(13.013, {30000.0 / 1001, true}, 0, 16) == 208);  // (13.013 - 0.0167) * 16 = 207.9
  CHECK(fillable_frames(0.01, {24, true}, 0, 16) == 0);
  CHECK(fillable_frames(0.04, {25, true}, 0, 16) == 1);
  for (const double source_fps : {8.0, 23.976, 25.0, 60.0})
    for (const double fps : {8.0, 16.0, 24.0})
      for (int64_t frames = 1; frames < 130; frames += 4) {
        const double needed = needed_seconds(frames, {source_fps, true}, fps);
        CHECK(fillable_frames(needed + 1e-9, {source_fps, true}, 0, fps) >= frames);
        CHECK(fillable_frames(needed - 1e-4, {source_fps, true}, 0, fps) < std::max<int64_t>(frames, 2));
      }
}

TEST_CASE("Clip starts of each extraction") {
  // 10 s at 16 fps, clips of 33 frames: the last instant lies 2 s after the start.
  CHECK(clip_starts("head", 4, 33, 10, {16, true}, 16) == std::vector<double>{0});
  CHECK(clip_starts("random", 4, 33, 10, {16, true}, 16) == std::vector<double>{0});
  const auto chunks = clip_starts("chunk", 4, 33, 10, {16, true}, 16);
  REQUIRE(chunks.size() == 4);  // 160 frames hold four times 33
  for (size_t i = 0; i < chunks.size(); ++i) CHECK(chunks[i] == Approx(2.0625 * static_cast<double>(i)));
  CHECK(clip_starts("chunk", 4, 40, 10, {16, true}, 16).size() == 4);
  CHECK(clip_starts("chunk", 4, 41, 10, {16, true}, 16).size() == 3);
  const auto uniform = clip_starts("uniform", 3, 33, 10, {16, true}, 16);
  REQUIRE(uniform.size() == 3);
  CHECK(uniform[0] == 0);
  CHECK(uniform[2] == Approx(10 - 2 - 0.5 / 16).margin(0.003));
  CHECK(uniform[1] == Approx(uniform[2] / 2));
  REQUIRE(clip_starts("uniform", 1, 33, 10, {16, true}, 16).size() == 1);
  CHECK(clip_starts("uniform", 1, 33, 10, {16, true}, 16)[0] == Approx(uniform[1]));
  // Room for two more instants only: three starts, not nine.
  CHECK(clip_starts("uniform", 9, 33, 35.0 / 16, {16, true}, 16).size() == 3);
  CHECK(clip_starts("uniform", 9, 33, 33.0 / 16, {16, true}, 16).size() == 1);
}
