// What a file is by its first bytes, whatever its name says, and how its picture is to be turned.
#pragma once
#include <optional>
#include <string>

#include "data/video_reader.h"

namespace vmoba::data {

struct MediaContent {
  std::string demuxer;      // libav's, where the bytes decide it; else libav probes
  bool picture = false;     // one still image that the demuxer delivers whole
  bool animation = false;   // frames with durations of their own: GIF, APNG
  std::string unsupported;  // why libav cannot decode it ("animated WebP; convert it ..."), or ""
  std::string way_out;      // what to do where this libav cannot read it, or ""
};

// Throws MediaError where the file cannot be read.
MediaContent media_content(const std::string& path);

// Of a picture: EXIF in JPEG, PNG, WebP and TIFF, irot and imir in AVIF and HEIC. Nothing where the file does not say.
std::optional<Orientation> picture_orientation(const std::string& path);

}  // namespace vmoba::data
