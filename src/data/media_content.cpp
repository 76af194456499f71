#include "data/media_content.h"

#include <fmt/format.h>

#include <array>
#include <map>
#include <string_view>

#include "data/byte_file.h"

namespace vmoba::data {
namespace {

constexpr size_t kHead_bytes = 4096;
constexpr int kMaxChunks = 100'000;  // of a PNG or RIFF file; more is taken for damage

// The file name extension decides where several pictures in a row are meant to be a video.
bool has_extension(std::string_view path, std::string_view extension) {
  if (path.size() < extension.size()) return false;
  path.remove_prefix(path.size() - extension.size());
  for (size_t i = 0; i < path.size(); ++i)
    if ((path[i] | 0x20) != (extension[i] | 0x20)) return false;
  return true;
}

// A PNG is animated where acTL precedes its picture.
bool is_animated_png(ByteFile& file) {
  uint64_t at = 8;
  for (int i = 0; i < kMaxChunks; ++i) {
    const std::string chunk = file.read(at, 8);
    if (chunk.size() < 8 || chunk.compare(4, 4, "IDAT") == 0) return false;
    if (chunk.compare(4, 4, "acTL") == 0) return true;
    at += 12 + number_at(chunk, 0, 4);
  }
  return false;
}

bool is_bitmap(std::string_view head) {
  if (!head.starts_with("BM") || head.size() < 18) return false;
  const auto header = static_cast<unsigned char>(head[14]);
  for (const int known : {12, 16, 40, 52, 56, 64, 108, 124})
    if (header == known) return head[15] == 0 && head[16] == 0 && head[17] == 0;
  return false;
}

// Tag -> first value, of a ratio the number above the line; of the first directory of TIFF data that begin at `base` of
// the file. Other tags are left out.
std::map<uint64_t, uint64_t> tiff_tags(ByteFile& file, uint64_t base) {
  constexpr uint64_t kByte = 1, kShort = 3, kLong = 4, kRatio = 5;
  std::map<uint64_t, uint64_t> out;
  const std::string head = file.read(base, 8);
  if (head.size() < 8 || (head.compare(0, 2, "II") != 0 && head.compare(0, 2, "MM") != 0)) return out;
  const bool big = head[0] == 'M';
  const uint64_t directory = base + number_at(head, 4, 4, big);
  const uint64_t entries = number_at(file.read(directory, 2), 0, 2, big);
  const std::string list = file.read(directory + 2, static_cast<size_t>(12 * entries));
  for (size_t at = 0; at + 12 <= list.size(); at += 12) {
    const uint64_t type = number_at(list, at + 2, 2, big), count = number_at(list, at + 4, 4, big);
    const size_t bytes = type == kByte ? 1 : type == kShort ? 2 : type == kLong || type == kRatio ? 4 : 0;
    if (bytes == 0 || count == 0) continue;
    // Values of more than four bytes lie elsewhere.
    const bool here = type != kRatio && count <= 4 / bytes;
    const std::string value =
        here ? list.substr(at + 8, bytes) : file.read(base + number_at(list, at + 8, 4, big), bytes);
    out.emplace(number_at(list, at, 2, big), number_at(value, 0, bytes, big));
  }
  return out;
}

// libavcodec decodes some TIFFs to black pictures or wrong colours, without an error. Returns what such a one is, or
// "".
std::string unread_tiff(ByteFile& file) {
  constexpr uint64_t kCompression = 259, kColours = 262, kTileWidth = 322, kSampleFormat = 339, kBlackWhite = 532;
  const auto tags = tiff_tags(file, 0);
  const auto is = [&](uint64_t tag, uint64_t value) {
    const auto found = tags.find(tag);
    return found != tags.end() && found->second == value;
  };
  if (is(kCompression, 6) || is(kCompression, 7)) return "a TIFF that holds a JPEG";
  if (tags.count(kTileWidth) != 0) return "a TIFF of tiles";
  // Those of ffmpeg state video's range, in which libavcodec reads all of them.
  const auto black = tags.find(kBlackWhite);
  const bool as_video = black != tags.end() && black->second > 0;
  if ((is(kColours, 6) && !as_video) || is(kColours, 8)) return "a TIFF in YCbCr or CIE Lab colours";
  if (is(kSampleFormat, 2) || is(kSampleFormat, 3)) return "a TIFF of signed or floating-point numbers";
  return "";
}

MediaContent picture(const char* demuxer) {
  MediaContent out;
  out.demuxer = demuxer;
  out.picture = true;
  return out;
}

MediaContent animation(const char* demuxer) {
  MediaContent out;
  out.demuxer = demuxer;
  out.animation = true;
  return out;
}

MediaContent unsupported(std::string what) {
  MediaContent out;
  out.unsupported = std::move(what);
  return out;
}

}  // namespace

MediaContent media_content(const std::string& path) {
  using namespace std::string_view_literals;
  ByteFile file(path);
  const std::string bytes = file.read(0, kHead_bytes);
  const std::string_view head(bytes);
  if (head.starts_with("\x89PNG\r\n\x1A\n"sv)) return is_animated_png(file) ? animation("apng") : picture("png_pipe");
  if (head.starts_with("GIF87a"sv) || head.starts_with("GIF89a"sv)) return animation("gif");
  if (head.starts_with("\xFF\xD8\xFF"sv) && !has_extension(path, ".mjpeg") && !has_extension(path, ".mjpg"))
    return picture("jpeg_pipe");
  if (head.starts_with("RIFF"sv) && head.substr(std::min<size_t>(8, head.size())).starts_with("WEBP"sv)) {
    constexpr int kAnimation = 0x02;
    if (head.size() > 20 && head.substr(12, 4) == "VP8X"sv && (head[20] & kAnimation) != 0)
      return unsupported("animated WebP; convert it to .mp4, .gif or .png frames, for instance with Pillow");
    return picture("webp_pipe");
  }
  if (head.starts_with("II*\0"sv) || head.starts_with("MM\0*"sv)) {
    const std::string unread = unread_tiff(file);
    return unread.empty() ? picture("tiff_pipe") : unsupported(unread + "; convert it to .png");
  }
  if (head.starts_with("II+\0"sv) || head.starts_with("MM\0+"sv)) return unsupported("a BigTIFF; convert it to .png");
  if (is_bitmap(head)) return picture("bmp_pipe");
  if (head.starts_with("\xFF\x0A"sv) || head.starts_with("\0\0\0\x0CJXL "sv)) return picture("jpegxl_pipe");
  if (head.starts_with("\0\0\0\x0CjP  "sv) || head.starts_with("\xFF\x4F\xFF\x51"sv)) return picture("j2k_pipe");
  if (head.starts_with("qoif"sv)) return picture("qoi_pipe");
  if (head.starts_with("8BPS"sv)) return picture("psd_pipe");
  if (head.size() >= 12 && head.substr(4, 4) == "ftyp"sv) {
    MediaContent out;
    for (const std::string_view brand :
         {"heic"sv, "heix"sv, "heim"sv, "heis"sv, "mif1"sv, "msf1"sv, "avif"sv, "avis"sv})
      if (head.substr(8, 4) == brand) out.way_out = "HEIC and AVIF need a newer FFmpeg; convert the picture to .png";
    return out;
  }
  constexpr std::array<std::pair<std::string_view, const char*>, 7> kOthers = {
      {{"%PDF"sv, "a PDF document; convert its pages to .png"},
       {"<svg"sv, "an SVG drawing; convert it to .png"},
       {"PK\x03\x04"sv, "a zip archive; unpack it"},
       {"\x1F\x8B"sv, "a gzip archive; unpack it"},
       {"version https://git-lfs"sv, "a pointer of Git LFS, not the file itself; run `git lfs pull`"},
       {"<!DOCTYPE"sv, "a web page, not a media file; download the file again"},
       {"<html"sv, "a web page, not a media file; download the file again"}}};
  for (const auto& [start, what] : kOthers)
    if (head.starts_with(start)) return unsupported(what);
  return {};
}

namespace {

// EXIF's numbers 1 to 8.
std::optional<Orientation> exif_turn(uint64_t value) {
  constexpr std::array<Orientation, 9> kTurns = {
      {{}, {false, 0}, {true, 0}, {false, 2}, {true, 2}, {true, 3}, {false, 1}, {true, 1}, {false, 3}}};
  if (value < 1 || value > 8) return std::nullopt;
  return kTurns[value];
}

std::optional<Orientation> tiff_orientation(ByteFile& file, uint64_t base) {
  constexpr uint64_t kOrientation = 0x0112;
  const auto tags = tiff_tags(file, base);
  const auto found = tags.find(kOrientation);
  return found == tags.end() ? std::nullopt : exif_turn(found->second);
}

std::optional<Orientation> jpeg_orientation(ByteFile& file) {
  uint64_t at = 2;
  for (int i = 0; i < kMaxChunks; ++i) {
    const std::string head = file.read(at, 10);
    if (head.size() < 4 || static_cast<unsigned char>(head[0]) != 0xFF) return std::nullopt;
    const auto marker = static_cast<unsigned char>(head[1]);
    if (marker == 0xDA || marker == 0xD9) return std::nullopt;
    if (marker == 0xFF) {  // fill bytes
      ++at;
      continue;
    }
    if (marker == 0xE1 && head.compare(4, 5, std::string("Exif\0", 5)) == 0) return tiff_orientation(file, at + 10);
    at += 2 + number_at(head, 2, 2);
  }
  return std::nullopt;
}

// `tag` of a file of chunks: its data's place, or 0.
uint64_t find_chunk(ByteFile& file, uint64_t at, const std::string& tag, bool is_png) {
  for (int i = 0; i < kMaxChunks; ++i) {
    const std::string head = file.read(at, 8);
    if (head.size() < 8) return 0;
    if (head.compare(is_png ? 4 : 0, 4, tag) == 0) return at + 8;
    const uint64_t length = number_at(head, is_png ? 0 : 4, 4, is_png);
    at += is_png ? 12 + length : 8 + length + length % 2;
  }
  return 0;
}

// EXIF of WebP may repeat JPEG's head.
std::optional<Orientation> chunk_orientation(ByteFile& file, uint64_t data) {
  if (data == 0) return std::nullopt;
  return tiff_orientation(file, file.read(data, 6) == std::string("Exif\0\0", 6) ? data + 6 : data);
}

struct Box {
  uint64_t data = 0, end = 0;
};

// The first box of the type in [at, end) of an ISO base media file.
std::optional<Box> find_box(ByteFile& file, uint64_t at, uint64_t end, const char* type) {
  for (int i = 0; i < kMaxChunks && at + 8 <= end; ++i) {
    const std::string head = file.read(at, 16);
    if (head.size() < 8) return std::nullopt;
    uint64_t size = number_at(head, 0, 4), header = 8;
    if (size == 1) size = number_at(head, 8, 8), header = 16;
    if (size == 0) size = end - at;
    if (size < header || size > end - at) return std::nullopt;
    if (head.compare(4, 4, type) == 0) return Box{at + header, at + size};
    at += size;
  }
  return std::nullopt;
}

// Numbers (from 1) of the properties of item `item`, in their order.
std::vector<uint64_t> item_properties(const std::string& ipma, uint64_t item) {
  const bool wide_items = number_at(ipma, 0, 1) > 0, wide_numbers = (number_at(ipma, 3, 1) & 1) != 0;
  const size_t item_bytes = wide_items ? 4 : 2, number_bytes = wide_numbers ? 2 : 1;
  std::vector<uint64_t> out;
  size_t at = 8;
  for (uint64_t left = number_at(ipma, 4, 4); left > 0 && at + item_bytes < ipma.size(); --left) {
    const bool wanted = number_at(ipma, at, item_bytes) == item;
    at += item_bytes;
    const uint64_t count = number_at(ipma, at++, 1);
    for (uint64_t i = 0; i < count; ++i, at += number_bytes)
      if (wanted) out.push_back(number_at(ipma, at, number_bytes) & (wide_numbers ? 0x7FFF : 0x7F));
    if (wanted) break;
  }
  return out;
}

// `next` after `first`.
Orientation followed_by(const Orientation& first, const Orientation& next) {
  // A mirroring behind a turn is a mirroring before the opposite turn.
  return {first.mirror != next.mirror, ((next.mirror ? -first.turns : first.turns) + next.turns + 4) % 4};
}

// irot (anticlockwise quarter turns) and imir (0: top and bottom change places, 1: left and right) of the main item.
std::optional<Orientation> heif_orientation(ByteFile& file) {
  constexpr uint64_t kEnd = uint64_t{1} << 62;
  constexpr size_t kMaxProperties_bytes = 1 << 20;
  const auto meta = find_box(file, 0, kEnd, "meta");
  if (!meta) return std::nullopt;
  const auto pitm = find_box(file, meta->data + 4, meta->end, "pitm");
  const auto iprp = find_box(file, meta->data + 4, meta->end, "iprp");
  if (!pitm || !iprp) return std::nullopt;
  const auto ipco = find_box(file, iprp->data, iprp->end, "ipco"), ipma = find_box(file, iprp->data, iprp->end, "ipma");
  if (!ipco || !ipma || ipma->end - ipma->data > kMaxProperties_bytes) return std::nullopt;
  const std::string main = file.read(pitm->data, 8);
  const uint64_t item = number_at(main, 4, number_at(main, 0, 1) == 0 ? 2 : 4);
  const std::string associations = file.read(ipma->data, static_cast<size_t>(ipma->end - ipma->data));
  Orientation out;
  for (const uint64_t number : item_properties(associations, item)) {
    uint64_t at = ipco->data;
    for (uint64_t i = 1; i < number && at < ipco->end; ++i)
      at += std::max<uint64_t>(8, number_at(file.read(at, 4), 0, 4));
    const std::string box = file.read(at, 9);
    if (at >= ipco->end || box.size() < 9) continue;
    if (box.compare(4, 4, "irot") == 0) out = followed_by(out, {false, (4 - (box[8] & 3)) % 4});
    if (box.compare(4, 4, "imir") == 0) out = followed_by(out, {true, (box[8] & 1) != 0 ? 0 : 2});
  }
  return out;
}

}  // namespace

std::optional<Orientation> picture_orientation(const std::string& path) {
  ByteFile file(path);
  const std::string head = file.read(0, 12);
  if (head.compare(0, 2, "\xFF\xD8") == 0) return jpeg_orientation(file);
  if (head.compare(0, 4, "\x89PNG") == 0) return chunk_orientation(file, find_chunk(file, 8, "eXIf", true));
  if (head.compare(0, 4, "RIFF") == 0) return chunk_orientation(file, find_chunk(file, 12, "EXIF", false));
  if (head.compare(0, 2, "II") == 0 || head.compare(0, 2, "MM") == 0) return tiff_orientation(file, 0);
  if (head.size() == 12 && head.compare(4, 4, "ftyp") == 0) return heif_orientation(file);
  return std::nullopt;
}

}  // namespace vmoba::data
