// Pictures as cameras and programs write them: recognised by their bytes, upright, in their colours. Fixtures come from
// scripts/make_picture_fixtures.py (Pillow); larger JPEGs from the ffmpeg program.
#include <ATen/ATen.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <map>

#include "data/clip_decoder.h"
#include "data/clip_plan.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::data;
using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kPictures = fixtures() + "/data/pictures/";

at::Tensor picture(const std::string& path, int64_t height, int64_t width) {
  VideoReader reader(path, 1);
  return decode_clip(reader, {0, 16, 1, height, width, false}).select(1, 0).to(at::kDouble);
}

// Colour in the middle of the quarter (0: top left, 1: top right, 2: bottom left, 3: bottom right).
std::array<int, 3> quarter(const at::Tensor& picture_CHW, int64_t which) {
  const int64_t height = picture_CHW.size(1), width = picture_CHW.size(2);
  const int64_t y = height / 4 + (which / 2) * height / 2, x = width / 4 + (which % 2) * width / 2;
  std::array<int, 3> out{};
  for (int64_t c = 0; c < 3; ++c)
    out[size_t(c)] = int(picture_CHW[c].slice(0, y - 4, y + 4).slice(1, x - 4, x + 4).mean().item<double>() + 0.5);
  return out;
}

double mean_error(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().mean().item<double>();
}

std::string reason_of(const std::string& path) {
  try {
    probe_media(path);
  } catch (const MediaError& error) {
    return error.what();
  }
  return "";
}

bool near(const std::array<int, 3>& a, const std::array<int, 3>& b) {
  for (size_t c = 0; c < 3; ++c)
    if (std::abs(a[c] - b[c]) > 12) return false;
  return true;
}

void check_upright(const std::string& path) {
  const MediaInfo info = probe_media(path);
  CHECK(info.is_image);
  CHECK(info.displayed_width == 96);
  CHECK(info.displayed_height == 64);
  const at::Tensor seen = picture(path, 64, 96);
  CHECK(near(quarter(seen, 0), {255, 0, 0}));
  CHECK(near(quarter(seen, 1), {0, 255, 0}));
  CHECK(near(quarter(seen, 2), {0, 0, 255}));
  CHECK(near(quarter(seen, 3), {255, 255, 255}));
}

}  // namespace

TEST_CASE("Every EXIF orientation of every format that carries one is shown upright") {
  for (const std::string kind : {"jpg", "png", "webp", "tif", "avif"})
    for (int turn = 1; turn <= 8; ++turn) {
      const std::string name = "turned_" + std::to_string(turn) + "." + kind;
      INFO(name);
      check_upright(kPictures + name);
    }
}

TEST_CASE("A picture is what its bytes say, under any name") {
  const TemporaryFolder folder;
  const std::vector<std::string> kinds = {"jpg", "png", "webp", "tif", "avif"};
  for (const std::string& kind : kinds)
    for (const std::string name :
         {".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".mp4", ".avif", ".mjpeg.jpg", ".JPEG", ""}) {
      INFO(kind << " named " << name);
      const std::string path = folder.path() + "/picture" + name;
      write_bytes(path, read_bytes(kPictures + "turned_6." + kind));
      check_upright(path);
    }
  const std::string video = folder.path() + "/video.jpg";
  make_moving_video(folder.path() + "/video.mp4", 10, "64x48", "10", {"-c:v", "libx264"});
  fs::rename(folder.path() + "/video.mp4", video);
  CHECK_FALSE(probe_media(video).is_image);
}

TEST_CASE("JPEGs of any size and writer are whole") {
  const at::Tensor photo = picture(kPictures + "photo.png", 96, 144);
  // Mean error of a decoder of its own, as measured with Pillow: 2.6 for quality 92 with halved chroma, 1.6 for CMYK.
  for (const std::string name : {"photo.jpg", "photo_progressive.jpg", "photo_camera.jpg", "photo_cmyk.jpg"}) {
    INFO(name);
    CHECK(probe_media(kPictures + name).is_image);
    CHECK(mean_error(picture(kPictures + name, 96, 144), photo) < 6);
  }
  CHECK(probe_media(kPictures + "photo_small.jpg").is_image);

  const TemporaryFolder folder;
  const std::string noise = "nullsrc=s=640x480,geq=random(1)*255:128:128,format=yuv420p";
  for (const std::string format : {"yuvj420p", "yuvj422p", "yuvj444p"}) {
    INFO(format);
    const std::string path = folder.path() + "/large.jpg";
    ffmpeg({"-f", "lavfi", "-i", noise, "-frames:v", "1", "-update", "1", "-pix_fmt", format, "-q:v", "2", path});
    REQUIRE(fs::file_size(path) > 100'000);
    const at::Tensor expected = ffmpeg_frames(path, "", 480, 640)[0].to(at::kDouble);
    CHECK(mean_error(picture(path, 480, 640), expected) < 3);
  }
}

TEST_CASE("Grey pictures are full range, whatever their depth") {
  for (const std::string name : {"grey.jpg", "grey.png", "grey.tif", "grey.webp", "grey_alpha.png", "grey_16.png",
                                 "grey_palette.png", "grey_palette.gif"}) {
    INFO(name);
    const at::Tensor seen = picture(kPictures + name, 32, 96);
    const at::Tensor ramp = (at::arange(96, at::kDouble) * 255 / 95).round();
    CHECK((seen - ramp).abs().max().item<double>() <= 3);
  }
}

TEST_CASE("Colour of 16 bits and palettes") {
  const TemporaryFolder folder;
  for (const std::string format : {"rgb48be", "rgba64be", "pal8", "rgb24", "monob"}) {
    INFO(format);
    const std::string path = folder.path() + "/picture.png";
    const std::string colour = format == "monob" ? "white" : "0x4080C0";
    ffmpeg({"-f", "lavfi", "-i", "color=" + colour + ":s=64x48,format=rgb24", "-frames:v", "1", "-update", "1",
            "-pix_fmt", format, path});
    const std::array<int, 3> seen = quarter(picture(path, 48, 64), 0);
    CHECK(near(seen, format == "monob" ? std::array<int, 3>{255, 255, 255} : std::array<int, 3>{0x40, 0x80, 0xC0}));
  }
}

TEST_CASE("Stills in containers of videos are images") {
  for (const std::string name : {"still.avif", "one_frame.gif", "one_frame.apng", "grey_palette.gif"}) {
    INFO(name);
    const MediaInfo info = probe_media(kPictures + name);
    CHECK(info.is_image);
    CHECK(info.duration_s == 0);
    CHECK(info.fps == 0);
  }
  CHECK_FALSE(probe_media(kPictures + "holds.gif").is_image);
}

TEST_CASE("A colour matrix that does not exist is damage, not a failure of the run") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/still.avif";
  std::string bytes = read_bytes(kPictures + "still.avif");
  // AV1's sequence header: primaries 1, transfer 13 and matrix 6, 8 bits each at no byte's beginning.
  const auto bit = [&](size_t at) { return bytes[at / 8] >> (7 - at % 8) & 1; };
  const auto number = [&](size_t at, size_t bits) {
    uint64_t out = 0;
    for (size_t i = 0; i < bits; ++i) out = out << 1 | uint64_t(bit(at + i));
    return out;
  };
  size_t place = 8 * bytes.find("mdat");
  while (number(place, 24) != 0x010D06) REQUIRE(++place + 24 < 8 * bytes.size());
  for (size_t i = 0; i < 8; ++i) {
    const size_t at = place + 16 + i;
    bytes[at / 8] = char((bytes[at / 8] & ~(1 << (7 - at % 8))) | (200 >> (7 - i) & 1) << (7 - at % 8));
  }
  write_bytes(path, bytes);
  std::string reason;
  try {
    picture(path, 32, 32);
  } catch (const MediaError& error) {
    reason = error.what();
  }
  CHECK(reason.find("corrupt: a colour matrix of number") == 0);
}

namespace {

// A grey TIFF of 32 x 32 white pixels, with these tags (of one number each) beside or in place of the usual ones.
std::string white_tiff(std::map<int, int> tags) {
  constexpr int kSide = 32, kStrip = 273, kTile = 324;
  tags.merge(std::map<int, int>{{256, kSide}, {257, kSide}, {258, 8}, {259, 1}, {262, 1}, {277, 1}});
  const bool tiled = tags.count(322) != 0;
  tags[tiled ? 325 : 279] = kSide * kSide;
  if (!tiled) tags[278] = kSide;
  const size_t data = 8 + 2 + 12 * (tags.size() + 1) + 4;
  tags[tiled ? kTile : kStrip] = static_cast<int>(data);
  const auto number = [](size_t value, int bytes) {
    std::string out;
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
    return out;
  };
  std::string out = "II*" + std::string(1, '\0') + number(8, 4) + number(tags.size(), 2);
  for (const auto& [tag, value] : tags)
    out += number(size_t(tag), 2) + number(4, 2) + number(1, 4) + number(size_t(value), 4);
  return out + number(0, 4) + std::string(kSide * kSide, '\xFF');
}

}  // namespace

TEST_CASE("A TIFF that libav would show black or in wrong colours is refused by its kind") {
  const TemporaryFolder folder;
  const auto reason = [&](const std::map<int, int>& tags) {
    write_bytes(folder.path() + "/x.tif", white_tiff(tags));
    return reason_of(folder.path() + "/x.tif");
  };
  CHECK(reason({}).empty());
  CHECK(picture(folder.path() + "/x.tif", 32, 32).min().item<double>() == 255);
  const auto refused = [&](const std::map<int, int>& tags, const std::string& what) {
    CHECK(reason(tags) == "unsupported: " + what + "; convert it to .png");
  };
  refused({{322, 32}, {323, 32}}, "a TIFF of tiles");
  refused({{259, 7}}, "a TIFF that holds a JPEG");
  refused({{259, 6}}, "a TIFF that holds a JPEG");
  refused({{262, 6}}, "a TIFF in YCbCr or CIE Lab colours");
  refused({{262, 8}}, "a TIFF in YCbCr or CIE Lab colours");
  refused({{339, 3}}, "a TIFF of signed or floating-point numbers");
}

TEST_CASE("What libav cannot read says so and names a way out") {
  const TemporaryFolder folder;
  const std::string animated = reason_of(kPictures + "animated.webp");
  CHECK(animated.find("unsupported: animated WebP; convert") == 0);
  const std::vector<std::pair<std::string, std::string>> others = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"},
      {"<!DOCTYPE html><html></html>", "web page"},
      {"%PDF-1.4\n", "PDF"},
      {"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"}};
  // A HEIC file without anything that libav knows.
  const std::string heic = std::string(
                               "\0\0\0\x18"
                               "ftypheic\0\0\0\0mif1heic",
                               24) +
                           std::string(
                               "\0\0\0\x08"
                               "free",
                               8);
  write_bytes(folder.path() + "/x.heic", heic);
  CHECK(reason_of(folder.path() + "/x.heic").find("unsupported: HEIC") == 0);
  for (const auto& [bytes, word] : others) {
    write_bytes(folder.path() + "/x.png", bytes);
    const std::string reason = reason_of(folder.path() + "/x.png");
    CHECK(reason.find("unsupported:") == 0);
    CHECK(reason.find(word) != std::string::npos);
  }
}
