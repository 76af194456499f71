#include "data/transforms.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <array>
#include <cmath>

#include "data/clip_decoder.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/process.h"

using namespace vmoba::data;
using namespace vmoba::test;

namespace {

at::Tensor first_frame(const std::string& path, int64_t height, int64_t width, bool flip = false) {
  VideoReader reader(path, 1);
  return decode_clip(reader, {0.0, 16, 1, height, width, flip}).select(1, 0);
}

MediaInfo stored(int64_t width, int64_t height, double pixel_aspect = 1, int turns = 0) {
  MediaInfo info;
  info.width = width;
  info.height = height;
  info.pixel_aspect = pixel_aspect;
  info.orientation.turns = turns;
  return info;
}

void check_box(const CropBox& box, std::array<int64_t, 4> expected) {
  CHECK(std::array<int64_t, 4>{box.x, box.y, box.width, box.height} == expected);
}

int64_t largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kInt) - b.to(at::kInt)).abs().max().item<int64_t>();
}

// ITU-R BT.601/709/2020 by the recommendation's own formula, in double.
std::array<double, 3> rgb_of(double y, double u, double v, int bits, double kr, double kb, bool full) {
  const double top = std::pow(2.0, bits) - 1, unit = std::pow(2.0, bits - 8);
  const double luma = full ? y / top : (y / unit - 16) / 219;
  const double cb = full ? (u - 128 * unit) / top : (u / unit - 128) / 224,
               cr = full ? (v - 128 * unit) / top : (v / unit - 128) / 224;
  const double r = luma + 2 * (1 - kr) * cr, b = luma + 2 * (1 - kb) * cb, g = (luma - kr * r - kb * b) / (1 - kr - kb);
  const auto byte = [](double x) { return 255 * std::min(1.0, std::max(0.0, x)); };
  return {byte(r), byte(g), byte(b)};
}

}  // namespace

TEST_CASE("The crop covers the target, centred, on chroma samples") {
  check_box(cover_crop(stored(1920, 1080), 832, 480, 2, 2), {24, 0, 1872, 1080});  // 1080 * 832 / 480 = 1872
  check_box(cover_crop(stored(480, 270), 224, 128, 2, 2), {4, 0, 472, 270});       // 472.5, to the nearest even
  check_box(cover_crop(stored(1080, 1920), 832, 480, 2, 2), {0, 648, 1080, 624});  // 1080 * 480 / 832 = 623.08
  check_box(cover_crop(stored(832, 480), 832, 480, 2, 2), {0, 0, 832, 480});
  check_box(cover_crop(stored(639, 359), 1278, 718, 2, 2), {0, 0, 639, 359});  // odd edges stay
  // Pixels half as wide as high: 1440 stored columns are displayed as 720.
  check_box(cover_crop(stored(1440, 480, 0.5), 480, 480, 2, 2), {240, 0, 960, 480});
  // Turned by a quarter the target's sides swap: of 1920x1080, shown as 1080x1920, 480:832 of the height stays.
  check_box(cover_crop(stored(1920, 1080, 1, 1), 480, 832, 2, 2), {24, 0, 1872, 1080});
}

TEST_CASE("Colours follow matrix and range by the recommendations' formulas") {
  struct Matrix {
    const char* tag;
    double kr, kb;
  };
  const Matrix bt601{"smpte170m", 0.299, 0.114}, bt709{"bt709", 0.2126, 0.0722}, bt2020{"bt2020nc", 0.2627, 0.0593},
      none601{"unknown", 0.299, 0.114}, none709{"unknown", 0.2126, 0.0722};
  struct Case {
    Matrix matrix;
    const char* range;
    int bits;
    const char* size;
  };
  const std::vector<Case> cases = {
      {bt601, "tv", 8, "64x64"},    {bt601, "pc", 8, "64x64"},     {bt709, "tv", 8, "64x64"},
      {bt709, "pc", 8, "64x64"},    {bt2020, "tv", 10, "64x64"},   {bt2020, "pc", 10, "64x64"},
      {none601, "tv", 8, "64x64"},  {none709, "tv", 8, "1280x64"}, {none709, "tv", 8, "64x578"},
      {none601, "tv", 8, "64x576"}, {bt709, "tv", 10, "64x64"}};
  const std::vector<std::array<int, 3>> colours = {
      {81, 90, 240}, {145, 54, 34}, {41, 240, 110}, {126, 128, 128}, {170, 100, 150}};
  const TemporaryFolder folder;
  for (const Case& c : cases) {
    for (size_t i = 0; i < colours.size(); i += c.bits == 8 && std::string(c.size) == "64x64" ? 1 : 4) {
      const int scale = c.bits == 10 ? 4 : 1;
      const auto [y, u, v] = std::array<int, 3>{colours[i][0] * scale, colours[i][1] * scale, colours[i][2] * scale};
      INFO(c.matrix.tag << " " << c.range << " " << c.bits << " bits " << c.size << " colour " << i);
      const std::string path = folder.path() + "/flat.mkv";
      make_flat_video(path, y, u, v, c.bits, c.size, c.matrix.tag, c.range);
      const at::Tensor frame = first_frame(path, 64, 64);
      const auto expected = rgb_of(y, u, v, c.bits, c.matrix.kr, c.matrix.kb, std::string(c.range) == "pc");
      for (int64_t channel = 0; channel < 3; ++channel) {
        const at::Tensor plane = frame[channel].to(at::kDouble);
        // Half a level of rounding, and swscale's coefficients of 13 to 16 bits: under one level each.
        CHECK((plane - expected[static_cast<size_t>(channel)]).abs().max().item<double>() <= 1.5);
      }
    }
  }
}

TEST_CASE("Crop and scale agree with ffmpeg's explicit filters") {
  struct Case {
    const char* source;
    int64_t height, width;
    const char* crop;  // computed by hand
  };
  const std::vector<Case> cases = {
      {"320x180", 96, 160, "crop=300:180:10:0"},   // shrinks to 8/15
      {"320x180", 192, 192, "crop=180:180:70:0"},  // enlarges
      {"180x320", 96, 160, "crop=180:108:0:106"},
      {"322x182", 64, 48, "crop=136:182:92:0"}};  // 136.5; (322 - 136) / 2 = 93, on chroma 92
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/moving.mkv";
  for (const Case& c : cases) {
    INFO(c.source << " to " << c.width << "x" << c.height);
    make_moving_video(path, 2, c.source, "16",
                      {"-c:v", "ffv1", "-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_range", "tv"});
    const at::Tensor ours = first_frame(path, c.height, c.width);
    const at::Tensor theirs = ffmpeg_frames(path,
                                            fmt::format("{},scale={}:{}:flags=bicubic+accurate_rnd+full_chroma_int+"
                                                        "full_chroma_inp:in_color_matrix=bt709:in_range=tv,format=gbrp",
                                                        c.crop, c.width, c.height),
                                            c.height, c.width)[0];
    CHECK(largest_difference(ours, theirs) <= 1);  // rounding of the last conversion
  }
}

TEST_CASE("Rotation and mirroring of the display matrix") {
  // Quarters of the stored picture: red green / blue white.
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/quarters.mp4";
  struct Case {
    int a, b, c, d;
    const char* corners;  // displayed: top left, top right, bottom left, bottom right
    bool turned;
  };
  // (x, y) -> (a x + c y, b x + d y): 0 1 / -1 0 turns clockwise, so that the stored left bottom gets to the left top.
  const std::vector<Case> cases = {{1, 0, 0, 1, "RGBW", false},   {0, 1, -1, 0, "BRWG", true},
                                   {-1, 0, 0, -1, "WBGR", false}, {0, -1, 1, 0, "GWRB", true},
                                   {-1, 0, 0, 1, "GRWB", false},  {1, 0, 0, -1, "BWRG", false},
                                   {0, 1, 1, 0, "RBGW", true},    {0, -1, -1, 0, "WGBR", true}};
  for (const Case& c : cases) {
    INFO("matrix " << c.a << " " << c.b << " / " << c.c << " " << c.d);
    ffmpeg({"-f",
            "lavfi",
            "-i",
            "color=red:s=64x32",
            "-f",
            "lavfi",
            "-i",
            "color=lime:s=64x32",
            "-f",
            "lavfi",
            "-i",
            "color=blue:s=64x32",
            "-f",
            "lavfi",
            "-i",
            "color=white:s=64x32",
            "-filter_complex",
            "[0][1]hstack[t];[2][3]hstack[b];[t][b]vstack",
            "-frames:v",
            "3",
            "-c:v",
            "libx264",
            "-pix_fmt",
            "yuv420p",
            path});
    set_display_matrix(path, c.a, c.b, c.c, c.d);
    VideoReader reader(path, 1);
    CHECK(reader.info().displayed_width == (c.turned ? 64 : 128));
    CHECK(reader.info().displayed_height == (c.turned ? 128 : 64));
    for (const bool flip : {false, true}) {
      const at::Tensor frame = first_frame(path, c.turned ? 128 : 64, c.turned ? 64 : 128, flip);
      std::string corners;
      for (const int64_t y : {int64_t{8}, frame.size(1) - 8})
        for (const int64_t x : {int64_t{8}, frame.size(2) - 8}) {
          const int r = frame[0][y][flip ? frame.size(2) - 1 - x : x].item<int>(),
                    g = frame[1][y][flip ? frame.size(2) - 1 - x : x].item<int>(),
                    b = frame[2][y][flip ? frame.size(2) - 1 - x : x].item<int>();
          corners += r > 128 && g > 128 && b > 128 ? 'W' : r > 128 ? 'R' : g > 128 ? 'G' : b > 128 ? 'B' : '?';
        }
      CHECK(corners == c.corners);
    }
    // What the ffmpeg program shows (pure rotations; its mirrored matrices changed between versions).
    if (c.a * c.d - c.b * c.c > 0) {
      const at::Tensor theirs =
          ffmpeg_frames(path, "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp,format=gbrp",
                        c.turned ? 128 : 64, c.turned ? 64 : 128)[0];
      CHECK((first_frame(path, c.turned ? 128 : 64, c.turned ? 64 : 128).to(at::kDouble) - theirs.to(at::kDouble))
                .abs()
                .mean()
                .item<double>() < 1.0);
    }
  }
}

TEST_CASE("A rotation between quarter turns is refused") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/skew.mp4";
  make_moving_video(path, 2, "64x48", "16", {"-c:v", "libx264"});
  set_display_matrix(path, 1, 1, -1, 1);
  CHECK_THROWS_AS(VideoReader(path, 1), MediaError);
}

TEST_CASE("Pixel aspect is honoured") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/anamorphic.mp4";
  make_moving_video(path, 2, "96x96", "16", {"-vf", "setsar=2/1", "-c:v", "libx264", "-pix_fmt", "yuv420p"});
  VideoReader reader(path, 1);
  CHECK(reader.info().displayed_width == 192);
  CHECK(reader.info().displayed_height == 96);
  CHECK(reader.info().pixel_aspect == Approx(2));
}

TEST_CASE("Nothing is written outside the planes, whatever the width") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/moving.mkv";
  make_moving_video(path, 1, "200x120", "16", {"-c:v", "ffv1", "-pix_fmt", "yuv420p"});
  for (const int64_t width : {1, 2, 15, 16, 17, 31, 32, 47, 48, 64, 100, 112}) {
    for (const int64_t height : {1, 9, 64}) {
      INFO(width << "x" << height);
      constexpr uint8_t kCanary = 0xA5;
      constexpr int64_t kMargin = 64;
      const int64_t pixels = width * height;
      std::vector<uint8_t> buffer(static_cast<size_t>(3 * pixels + 4 * kMargin), kCanary);
      VideoReader reader(path, 1);
      TimedFrame frame;
      REQUIRE(reader.next(frame));
      FrameScaler scaler(reader.info(), height, width, false);
      uint8_t* planes[3];
      for (int64_t i = 0; i < 3; ++i) planes[i] = buffer.data() + kMargin + i * (pixels + kMargin);
      scaler.run(*frame.frame, {planes[0], planes[1], planes[2]});
      bool intact = true;
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t k = 0; k < kMargin; ++k)
          intact = intact && buffer[static_cast<size_t>(i * (pixels + kMargin) + k)] == kCanary;
      CHECK(intact);
      bool written = false;  // a moving test picture is not one value
      for (int64_t k = 0; k < pixels; ++k) written = written || planes[0][k] != kCanary;
      CHECK(written);
    }
  }
}
