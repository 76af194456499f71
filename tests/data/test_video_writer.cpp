#include "data/video_writer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "data/clip_decoder.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/file_size_limit.h"
#include "support/process.h"

using namespace vmoba::data;
using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

// Colour waves that move: smooth, so that halved chroma loses little.
at::Tensor moving_waves(int64_t frames, int64_t height, int64_t width) {
  const at::Tensor t_F11 = at::arange(frames, at::kDouble).view({frames, 1, 1});
  const at::Tensor y_1H1 = at::arange(height, at::kDouble).view({1, height, 1});
  const at::Tensor x_11W = at::arange(width, at::kDouble).view({1, 1, width});
  const auto wave = [&](double kx, double ky, double kt) {
    return (127.5 + 100 * (kx * x_11W + ky * y_1H1 + kt * t_F11).sin()).round().to(at::kByte);
  };
  return at::stack({wave(0.05, 0.03, 0.2), wave(0.02, -0.06, 0.3), wave(-0.04, 0.05, 0.1)});
}

double psnr(const at::Tensor& a, const at::Tensor& b) {
  const double mse = (a.to(at::kDouble) - b.to(at::kDouble)).square().mean().item<double>();
  return 10 * std::log10(255 * 255 / mse);
}

std::string probe(const std::string& path, const std::string& entries) {
  std::string out =
      ffprobe({"-select_streams", "v:0", "-count_frames", "-show_entries", entries, "-of", "csv=p=0", path});
  while (!out.empty() && (out.back() == '\n' || out.back() == ',')) out.pop_back();
  return out;
}

// Names of the file's top boxes in order, such as "ftyp moov mdat".
std::string boxes(const std::string& bytes) {
  std::string out;
  for (size_t at = 0; at + 8 <= bytes.size();) {
    uint64_t size = 0;
    for (size_t i = 0; i < 4; ++i) size = size << 8 | static_cast<unsigned char>(bytes[at + i]);
    if (!out.empty()) out += ' ';
    out.append(bytes, at + 4, 4);
    REQUIRE(size >= 8);
    at += size;
  }
  return out;
}

size_t files_in(const std::string& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("The file is H.264 with the right rate and its index first") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/out.mp4";
  struct Case {
    double fps;
    const char* rate;
  };
  for (const Case& c :
       {Case{16, "16/1"}, {24000.0 / 1001, "24000/1001"}, {23.976, "24000/1001"}, {12.5, "25/2"}, {30, "30/1"}}) {
    INFO(c.fps);
    write_video(path, moving_waves(9, 48, 64), c.fps);
    CHECK(probe(path, "stream=codec_name,width,height,pix_fmt") == "h264,64,48,yuv420p");
    CHECK(probe(path, "stream=r_frame_rate,avg_frame_rate,nb_read_frames") == fmt::format("{},{},9", c.rate, c.rate));
    CHECK(probe(path, "stream=color_range,color_space,color_transfer,color_primaries") == "tv,bt709,bt709,bt709");
    const std::string order = boxes(read_bytes(path));
    CHECK(order.find("moov") < order.find("mdat"));
    const std::vector<double> times = frame_times(path);
    for (size_t i = 0; i < times.size(); ++i) CHECK(times[i] == Approx(static_cast<double>(i) / c.fps).margin(1e-4));
    CHECK(files_in(folder.path()) == 1);  // nothing temporary is left
  }
}

TEST_CASE("What was written is read back") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/out.mp4";
  const at::Tensor video = moving_waves(33, 96, 160);
  write_video(path, video, 16);
  VideoReader reader(path, 2);
  CHECK(reader.info().fps == Approx(16));
  const at::Tensor back = decode_clip(reader, {0, 16, 33, 96, 160, false});
  // The encoder's crf 18 gives 45 dB and more on smooth pictures; a wrong matrix or range costs 15 dB or more.
  CHECK(psnr(back, video) > 38);
  for (int64_t f = 0; f < 33; ++f) CHECK(psnr(back.select(1, f), video.select(1, f)) > 36);
  // And by a program of another hand.
  const at::Tensor shown = ffmpeg_frames(path, "scale=in_color_matrix=bt709:in_range=tv", 96, 160);
  CHECK(psnr(shown.permute({1, 0, 2, 3}), video) > 36);
}

TEST_CASE("Flat colours come back, whatever the colour") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/out.mp4";
  const int64_t colours[][3] = {{0, 0, 0},   {255, 255, 255}, {128, 128, 128}, {255, 0, 0},
                                {0, 255, 0}, {0, 0, 255},     {200, 150, 30}};
  for (const auto& colour : colours) {
    const at::Tensor video =
        at::tensor({colour[0], colour[1], colour[2]}, at::kByte).view({3, 1, 1, 1}).expand({3, 2, 32, 48}).contiguous();
    write_video(path, video, 16);
    VideoReader reader(path, 1);
    const at::Tensor back = decode_clip(reader, {0, 16, 2, 32, 48, false});
    // Limited range has 219 levels for 255: a level of luma and chroma each way and one of the encoder.
    CHECK((back.to(at::kInt) - video.to(at::kInt)).abs().max().item<int64_t>() <= 5);
  }
}

TEST_CASE("Odd sizes are padded by a copy of the edge, one frame is a video") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/out.mp4";
  const at::Tensor video = moving_waves(1, 63, 95);
  write_video(path, video, 8);
  VideoReader reader(path, 1);
  CHECK(reader.info().width == 96);
  CHECK(reader.info().height == 64);
  const at::Tensor back = decode_clip(reader, {0, 8, 1, 64, 96, false});
  CHECK(psnr(back.narrow(2, 0, 63).narrow(3, 0, 95), video) > 36);
}

TEST_CASE("The same frames give the same bytes") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/out.mp4";
  for (const int64_t height : {64, 192}) {
    const at::Tensor video = moving_waves(17, height, 3 * height / 2);
    write_video(path, video, 16);
    const std::string first = read_bytes(path);
    for (int i = 0; i < 8; ++i) {
      write_video(path, video, 16);
      CHECK((read_bytes(path) == first));
    }
  }
}

TEST_CASE("What cannot be written says so and leaves what was there") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/out.mp4";
  const at::Tensor video = moving_waves(9, 64, 96);
  const auto message_of = [&](const std::string& to, const at::Tensor& frames, double fps) {
    try {
      write_video(to, frames, fps);
    } catch (const vmoba::Error& error) {
      CHECK(error.kind() == vmoba::ErrorKind::kRuntime);
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message_of(folder.path() + "/none/out.mp4", video, 16).find("/none/out.mp4") != std::string::npos);
  CHECK(!message_of(path, video.to(at::kFloat), 16).empty());
  CHECK(!message_of(path, video.select(1, 0), 16).empty());
  CHECK(!message_of(path, video, 0).empty());
  CHECK(!message_of(path, video, std::nan("")).empty());
  CHECK(files_in(folder.path()) == 0);

  write_video(path, video, 16);
  const std::string before = read_bytes(path);
  REQUIRE(before.size() > 2000);
  {
    const FileSizeLimit limit(1000);
    CHECK(message_of(path, moving_waves(60, 64, 96), 16).find("free space") != std::string::npos);
  }
  CHECK(read_bytes(path) == before);
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("PNG pictures are exact") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/out.png";
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{48, 64}, {33, 17}, {1, 1}}) {
    const at::Tensor picture = moving_waves(1, height, width).select(1, 0);
    std::ofstream(path, std::ios::binary) << encode_png(picture);
    INFO(width << "x" << height);
    CHECK(at::equal(ffmpeg_frames(path, "", height, width)[0], picture));
  }
  CHECK_THROWS_AS(encode_png(at::zeros({3, 4, 4})), vmoba::Error);
}
