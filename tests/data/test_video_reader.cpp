// Which frames the reader finds, and when they are shown: against ffprobe's list of display times and videos whose
// frames carry their own number.
#include "data/video_reader.h"

#include <ATen/ATen.h>

#include <atomic>
#include <cmath>
#include <numeric>

#include "core/random.h"
#include "data/clip_decoder.h"
#include "data/media_files.h"
#include "data/transforms.h"
#include "support/catch.h"
#include "support/process.h"

using namespace vmoba::data;
using namespace vmoba::test;
using Words = std::vector<std::string>;

namespace {

constexpr int64_t kFrames = 110;
constexpr double kMillisecond_s = 1e-3;  // Matroska's clock

struct Format {
  std::string name, encoder, file;
  Words options;
};

// Codecs and containers that data sets hold; B-frames and long groups wherever the encoder has them.
const std::vector<Format>& formats() {
  static const std::vector<Format> all = {
      {"H.264 in mp4", "libx264", "v.mp4", {"-g", "24", "-bf", "3", "-pix_fmt", "yuv420p"}},
      {"H.264, open groups, in mkv", "libx264", "v.mkv", {"-g", "20", "-bf", "3", "-x264-params", "open-gop=1"}},
      {"H.264 in a transport stream", "libx264", "v.ts", {"-g", "24", "-bf", "2"}},
      {"H.264 of 10 bits", "libx264", "v10.mp4", {"-g", "250", "-pix_fmt", "yuv420p10le"}},
      {"H.264, intra only", "libx264", "intra.mov", {"-g", "1"}},
      {"HEVC in mp4", "libx265", "v265.mp4", {"-x265-params", "log-level=error:keyint=20:pools=1", "-tag:v", "hvc1"}},
      {"HEVC of 10 bits in mkv",
       "libx265",
       "v265.mkv",
       {"-x265-params", "log-level=error:keyint=20:pools=1", "-pix_fmt", "yuv420p10le"}},
      {"AV1 in mp4", "libaom-av1", "vav1.mp4", {"-cpu-used", "8", "-crf", "20", "-g", "24", "-lag-in-frames", "12"}},
      {"AV1 in mkv", "libaom-av1", "vav1.mkv", {"-cpu-used", "8", "-crf", "15", "-g", "250", "-lag-in-frames", "25"}},
      {"VP9 in webm", "libvpx-vp9", "v9.webm", {"-b:v", "0", "-crf", "15", "-g", "24", "-auto-alt-ref", "1"}},
      {"MPEG-4 in avi", "mpeg4", "v.avi", {"-q:v", "2", "-g", "24"}},
      {"MPEG-2 in a program stream", "mpeg2video", "v.mpg", {"-q:v", "2", "-g", "12", "-bf", "2"}},
      {"FFV1 in mkv", "ffv1", "ffv1.mkv", {"-pix_fmt", "yuv420p"}}};
  return all;
}

bool has_encoder(const std::string& name) {
  static const std::string list = run_process({"ffmpeg", "-hide_banner", "-encoders"}).output;
  return list.find(" " + name + " ") != std::string::npos;
}

// A counting video of the format at 25 frames per second; false where this ffmpeg has no such encoder.
bool make(const Format& format, const std::string& path, int64_t frames, const std::string& rate = "25") {
  if (!has_encoder(format.encoder)) return false;
  Words words = {"-c:v", format.encoder};
  words.insert(words.end(), format.options.begin(), format.options.end());
  make_counting_video(path, frames, rate, words);
  return true;
}

// What ffprobe says, or where the container times only some frames the 25 per second of the source.
std::vector<double> shown_times(const std::string& path) {
  if (path.find(".mpg") == std::string::npos) return frame_times(path);
  std::vector<double> out(kFrames);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<double>(i) / 25;
  return out;
}

struct Listing {
  std::vector<double> times;
  std::vector<int64_t> indices;
};

Listing read_all(VideoReader& reader) {
  Listing out;
  TimedFrame frame;
  FrameScaler scaler(reader.info(), 48, 64, false);
  while (reader.next(frame)) {
    const at::Tensor rgb = at::empty({3, 1, 48, 64}, at::kByte);
    auto* data = rgb.data_ptr<uint8_t>();
    scaler.run(*frame.frame, {data, data + 48 * 64, data + 2 * 48 * 64});
    out.times.push_back(frame.time_s);
    out.indices.push_back(counting_index(rgb).front());
  }
  return out;
}

std::vector<int64_t> clip_indices(const std::string& path, double start_s, double fps, int64_t frames, int threads) {
  VideoReader reader(path, threads);
  return counting_index(decode_clip(reader, {start_s, fps, frames, 48, 64, false}));
}

std::vector<int64_t> first_numbers(size_t count) {
  std::vector<int64_t> out(count);
  std::iota(out.begin(), out.end(), int64_t{0});
  return out;
}

bool close(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (std::abs(a[i] - b[i]) > tolerance) return false;
  return true;
}

// The frames on screen at the clip's times; containers round times to a millisecond.
std::vector<int64_t> frames_on_screen(const std::vector<double>& times, double start_s, double fps, int64_t frames) {
  std::vector<int64_t> out;
  for (int64_t k = 0; k < frames; ++k) {
    size_t shown = 0;
    while (shown + 1 < times.size() && start_s + double(k) / fps > times[shown + 1] - 2e-3) ++shown;
    out.push_back(int64_t(shown));
  }
  return out;
}

// Clips at drawn places of a file show the frames that the list of display times calls nearest; of a source much slower
// than the clip those on screen.
void check_clips(const std::string& path, const std::string& stream_name, int count) {
  const std::vector<double> times = shown_times(path);
  const MediaInfo info = probe_media(path);
  for (int i = 0; i < count; ++i) {
    vmoba::RandomStream random(5, stream_name, static_cast<uint64_t>(i));
    const double fps = std::vector<double>{8, 12.5, 16, 24, 30}[random.below(5)];
    const double last_s = times.back() - 0.2;
    const double start_s = last_s * random.uniform();
    const int64_t frames = std::min<int64_t>(17, 1 + static_cast<int64_t>((times.back() - start_s) * fps));
    INFO("clip " << i << ": " << frames << " frames at " << fps << " from " << start_s << " of " << info.duration_s);
    const bool slow = fps / info.fps > 1.75;
    CHECK(clip_indices(path, start_s, fps, frames, 1 + static_cast<int>(random.below(3))) ==
          (slow ? frames_on_screen(times, start_s, fps, frames) : nearest_frames(times, start_s, fps, frames)));
  }
}

std::string reason_of(const std::string& path) {
  try {
    VideoReader reader(path, 1);
    reader.measure_end();
    reader.seek(0);
    TimedFrame frame;
    while (reader.next(frame)) {
    }
  } catch (const MediaError& error) {
    return error.what();
  }
  return "";
}

bool starts_with(const std::string& text, const std::string& head) {
  return text.compare(0, head.size(), head) == 0;
}

}  // namespace

TEST_CASE("Every format: each displayed frame once, in order, at its time") {
  REQUIRE(has_encoder("libx264"));
  const TemporaryFolder folder;
  for (const Format& format : formats()) {
    INFO(format.name);
    const std::string path = folder.path() + "/" + format.file;
    if (!make(format, path, kFrames)) continue;
    const std::vector<double> expected = shown_times(path);
    for (const int threads : {1, 3}) {
      VideoReader reader(path, threads);
      CHECK(reader.info().displayed_width == 64);
      CHECK(reader.info().displayed_height == 48);
      CHECK(reader.info().fps == Approx(25).epsilon(0.001));
      CHECK_FALSE(reader.info().is_image);
      const Listing listing = read_all(reader);
      CHECK(listing.indices == first_numbers(kFrames));
      CHECK(close(listing.times, expected, 1e-6));
    }
    CHECK(probe_media(path).duration_s == Approx(kFrames / 25.0).margin(2 * kMillisecond_s));
  }
}

TEST_CASE("Every format: a clip from anywhere shows the nearest frames") {
  const TemporaryFolder folder;
  for (const Format& format : formats()) {
    INFO(format.name);
    const std::string path = folder.path() + "/" + format.file;
    if (make(format, path, kFrames)) check_clips(path, "reader." + format.name, 12);
  }
}

TEST_CASE("A reader can seek back and forth") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/v.mp4";
  make(formats().front(), path, 200);
  VideoReader reader(path, 2);
  for (const int64_t frame : {150, 3, 199, 0, 77, 76, 78, 0}) {
    const at::Tensor clip = decode_clip(reader, {static_cast<double>(frame) / 25, 25, 1, 48, 64, false});
    CHECK(counting_index(clip) == std::vector<int64_t>{frame});
  }
}

TEST_CASE("Source rates are resampled by timestamps") {
  const TemporaryFolder folder;
  for (const std::string rate : {"16", "24", "30000/1001", "60", "8", "13.7"}) {
    INFO(rate);
    const std::string path = folder.path() + "/v.mp4";
    make(formats().front(), path, 90, rate);
    check_clips(path, "rates." + rate, 4);
  }
  // Frame k of 16 per second stands at k / 16 s; of 24 frames per second the nearest is round(1.5 k), ties earlier.
  const std::string path = folder.path() + "/v24.mp4";
  make(formats().front(), path, 40, "24");
  CHECK(clip_indices(path, 0, 16, 9, 1) == std::vector<int64_t>{0, 1, 3, 4, 6, 7, 9, 10, 12});
}

TEST_CASE("Variable frame rates") {
  const TemporaryFolder folder;
  // 20 frames of 1/30 s, then 1/10 s each, with a gap of half a second before frame 30.
  const std::string times = "setpts='(if(lt(N,20),N/30,20/30+(N-20)/10)+if(gte(N,30),0.5,0))/TB'";
  for (const std::string file : {"v.mp4", "v.mkv"}) {
    INFO(file);
    const std::string path = folder.path() + "/" + file;
    make_counting_video(path, 50, "30",
                        {"-vf", "settb=1/90000," + times, "-vsync", "passthrough", "-enc_time_base", "1:90000", "-c:v",
                         "libx264", "-bf", "2", "-g", "25"});
    const std::vector<double> shown = frame_times(path);
    REQUIRE(shown.size() == 50);
    REQUIRE(shown[25] == Approx(20 / 30.0 + 0.5).margin(kMillisecond_s));
    REQUIRE(shown[40] == Approx(20 / 30.0 + 2.5).margin(kMillisecond_s));
    // A frame is on screen until the next one's time; half of the shortest frame earlier is allowed to the next one.
    for (const double fps : {8.0, 12.5, 16.0, 24.0})
      for (const double start_s : {0.0, 0.4, 1.37}) {
        INFO("at " << fps << " from " << start_s);
        const std::vector<int64_t> seen = clip_indices(path, start_s, fps, 21, 2);
        for (int64_t k = 0; k < 21; ++k) {
          const double wanted = start_s + static_cast<double>(k) / fps;
          const auto i = static_cast<size_t>(seen[static_cast<size_t>(k)]);
          const double early_s = i > 0 && shown[i] - shown[i - 1] > 0.05 ? 3 * kMillisecond_s : 1 / 59.0;
          CHECK(shown[i] - early_s <= wanted);
          CHECK((i + 1 == shown.size() || wanted < shown[i + 1]));
        }
      }
    // Across the gap: frame 29 stands at 1.567 s and frame 30 at 2.167 s.
    CHECK(clip_indices(path, 1.5, 10, 8, 1) == std::vector<int64_t>{28, 29, 29, 29, 29, 29, 29, 30});
  }
}

TEST_CASE("Time 0 is the first displayed frame, whatever the container's clock says") {
  const TemporaryFolder folder;
  const std::string source = folder.path() + "/v.mp4";
  make(formats().front(), source, 100);
  SECTION("a late start") {
    for (const std::string file : {"late.mp4", "late.mkv", "late.ts"}) {
      INFO(file);
      const std::string path = folder.path() + "/" + file;
      ffmpeg({"-i", source, "-c", "copy", "-output_ts_offset", "7.3", path});
      VideoReader reader(path, 1);
      const Listing listing = read_all(reader);
      CHECK(listing.times.front() == 0.0);
      CHECK(listing.indices == first_numbers(100));
      CHECK(clip_indices(path, 2.0, 25, 3, 1) == std::vector<int64_t>{50, 51, 52});
    }
  }
  SECTION("an edit list that hides the first frames") {
    const std::string path = folder.path() + "/cut.mp4";
    ffmpeg({"-ss", "1.4", "-i", source, "-c", "copy", path});
    VideoReader reader(path, 1);
    const Listing listing = read_all(reader);
    const std::vector<double> expected = frame_times(path);
    CHECK(listing.times.front() == 0.0);
    CHECK(close(listing.times, expected, 1e-6));
    REQUIRE(listing.indices.size() == expected.size());
    for (size_t i = 0; i < listing.indices.size(); ++i)
      CHECK(listing.indices[i] == listing.indices.front() + static_cast<int64_t>(i));
    const int64_t first = listing.indices.front();
    CHECK(clip_indices(path, 1.0, 25, 2, 1) == std::vector<int64_t>{first + 25, first + 26});
  }
}

TEST_CASE("Images are one frame without a rate") {
  const TemporaryFolder folder;
  for (const std::string file : {"a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.ppm"}) {
    const std::string path = folder.path() + "/" + file;
    if (file == "a.webp" && !has_encoder("libwebp")) continue;
    INFO(file);
    Words words = {"-f", "lavfi", "-i", "color=0x4080C0:s=50x38", "-frames:v", "1", "-update", "1", "-q:v", "1"};
    if (file == "a.webp") words.insert(words.end(), {"-lossless", "1"});
    words.push_back(path);
    ffmpeg(words);
    const MediaInfo info = probe_media(path);
    CHECK(info.is_image);
    CHECK(info.width == 50);
    CHECK(info.height == 38);
    CHECK(info.fps == 0);
    CHECK(info.duration_s == 0);
    VideoReader reader(path, 1);
    const at::Tensor picture = decode_clip(reader, {0, 16, 1, 32, 48, false});
    REQUIRE(picture.sizes() == at::IntArrayRef({3, 1, 32, 48}));
    const std::vector<double> colour = {0x40, 0x80, 0xC0};
    // JPEG goes through rounded chroma; the others keep RGB.
    const double margin = file == "a.jpg" ? 3 : 1;
    for (int64_t c = 0; c < 3; ++c)
      CHECK((picture[c].to(at::kDouble) - colour[static_cast<size_t>(c)]).abs().max().item<double>() <= margin);
  }
}

TEST_CASE("Alpha is dropped, not blended") {
  const TemporaryFolder folder;
  const std::string colour = "color=0x4080C0@0.25:s=64x48,format=rgba";
  const std::string png = folder.path() + "/clear.png", deep = folder.path() + "/deep.png";
  ffmpeg({"-f", "lavfi", "-i", colour, "-frames:v", "1", "-update", "1", png});
  ffmpeg({"-f", "lavfi", "-i", colour + ",format=rgba64be", "-frames:v", "1", "-update", "1", deep});
  const std::string video = folder.path() + "/clear.mkv";
  ffmpeg({"-f", "lavfi", "-i", colour, "-frames:v", "3", "-c:v", "ffv1", "-pix_fmt", "yuva444p", video});
  for (const std::string& path : {png, deep, video}) {
    INFO(path);
    VideoReader reader(path, 1);
    const at::Tensor picture = decode_clip(reader, {0, 16, 1, 48, 64, false});
    CHECK(std::abs(picture[0].to(at::kDouble).mean().item<double>() - 0x40) <= 2);
    CHECK(std::abs(picture[1].to(at::kDouble).mean().item<double>() - 0x80) <= 2);
    CHECK(std::abs(picture[2].to(at::kDouble).mean().item<double>() - 0xC0) <= 2);
  }
}

TEST_CASE("The default video stream with the most pixels is read; sound and cover art are not") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/many.mkv";
  ffmpeg({"-f",
          "lavfi",
          "-i",
          "sine=d=1",
          "-f",
          "lavfi",
          "-i",
          "color=red:s=32x32:r=10:d=1",
          "-f",
          "lavfi",
          "-i",
          "color=blue:s=96x64:r=10:d=1",
          "-map",
          "0",
          "-map",
          "1",
          "-map",
          "2",
          "-c:v",
          "ffv1",
          "-c:a",
          "flac",
          "-disposition:v:0",
          "0",
          "-disposition:v:1",
          "0",
          path});
  VideoReader reader(path, 1);
  CHECK(reader.stream_index() == 2);
  CHECK(reader.info().width == 96);

  const std::string cover = folder.path() + "/cover.png", song = folder.path() + "/song.mp3";
  ffmpeg({"-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", "1", "-update", "1", cover});
  ffmpeg({"-f", "lavfi", "-i", "sine=d=1", "-i", cover, "-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v:0",
          "attached_pic", song});
  CHECK(starts_with(reason_of(song), "audio only:"));
}

TEST_CASE("What cannot be read says why") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  const std::string good = root + "/good.mp4", early = root + "/early.mp4", stream = root + "/good.ts";
  make_moving_video(good, 60, "128x96", "20", {"-c:v", "libx264", "-g", "15", "-pix_fmt", "yuv420p"});
  ffmpeg({"-i", good, "-c", "copy", "-movflags", "+faststart", early});
  REQUIRE(reason_of(good).empty());
  REQUIRE(reason_of(early).empty());
  const std::string bytes = read_bytes(good), early_bytes = read_bytes(early);

  CHECK(starts_with(reason_of(root + "/none.mp4"), "missing:"));
  CHECK(starts_with(reason_of(root), "unreadable:"));
  write_bytes(root + "/empty.mp4", "");
  CHECK(starts_with(reason_of(root + "/empty.mp4"), "empty:"));
  write_bytes(root + "/text.mp4", "this is no video\n");
  CHECK(starts_with(reason_of(root + "/text.mp4"), "corrupt:"));
  write_bytes(root + "/cut.mp4", bytes.substr(0, bytes.size() / 2));  // the index at the end is gone
  CHECK(starts_with(reason_of(root + "/cut.mp4"), "corrupt:"));
  write_bytes(root + "/cut_early.mp4", early_bytes.substr(0, early_bytes.size() * 6 / 10));
  CHECK(starts_with(reason_of(root + "/cut_early.mp4"), "truncated"));
  ffmpeg({"-f", "lavfi", "-i", "sine=d=1", root + "/sound.m4a"});
  CHECK(starts_with(reason_of(root + "/sound.m4a"), "audio only:"));
  ffmpeg({"-f", "lavfi", "-i", "sine=d=1", root + "/sound.wav"});
  CHECK(starts_with(reason_of(root + "/sound.wav"), "audio only:"));
  // A playlist could name other files: not a container that is opened.
  write_bytes(root + "/list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\ngood.mp4\n#EXT-X-ENDLIST\n");
  CHECK(starts_with(reason_of(root + "/list.m3u8"), "unsupported:"));

  // Frames are overwritten, the index is whole: in the middle, and from the first frame on.
  const size_t data = bytes.find("mdat") + 4, length = bytes.find("moov") - data;
  for (const double from : {0.4, 0.05}) {
    std::string holed = bytes;
    for (size_t i = static_cast<size_t>(from * static_cast<double>(length)); i < length * 3 / 4; ++i)
      holed[data + i] = 'Z';
    write_bytes(root + "/holed.mp4", holed);
    CHECK(starts_with(reason_of(root + "/holed.mp4"),
                      from > 0.1 ? "corrupt: a frame" : "truncated: 3.00 s of video promised"));
  }
}

TEST_CASE("A clip past the end is refused as truncated") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/v.mp4";
  make(formats().front(), path, 25);
  CHECK(clip_indices(path, 0, 25, 25, 1) == first_numbers(25));
  VideoReader reader(path, 1);
  try {
    decode_clip(reader, {0, 25, 29, 48, 64, false});
    FAIL("accepted");
  } catch (const MediaError& error) {
    CHECK(starts_with(error.what(), "truncated:"));
  }
}

TEST_CASE("File names are names") {
  const TemporaryFolder folder;
  for (const std::string name :
       {"a:b.mp4", "%03d.mp4", "*?[x].mp4", "-y.mp4", "caf\xC3\xA9 \xE6\x97\xA5.mp4", "a'b\"c.mp4"}) {
    INFO(name);
    const std::string plain = folder.path() + "/plain.mp4", path = folder.path() + "/" + name;
    make(formats().front(), plain, 3);
    write_bytes(path, read_bytes(plain));
    CHECK(clip_indices(path, 0, 25, 3, 1) == first_numbers(3));
  }
}

TEST_CASE("A cancelled watch ends a call, and is told of every packet") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/v.mp4";
  make(formats().front(), path, 50);
  vmoba::ReadWatch watch;
  VideoReader reader(path, 1, &watch);
  TimedFrame frame;
  int64_t frames = 0;
  while (reader.next(frame)) ++frames;
  REQUIRE(frames == 50);
  CHECK(watch.parts() >= frames);
  reader.seek(0);
  REQUIRE(reader.next(frame));  // which seek() has decoded
  watch.cancel();
  CHECK_THROWS_AS(reader.next(frame), MediaError);
}
