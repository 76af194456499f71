// Which part of a media file a manifest line means: time, picture, rate, repeats.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace vmoba::data {

struct MediaCut {
  double start_s = -1, end_s = -1;           // as the file is played; negative: not given
  int64_t start_frame = -1, end_frame = -1;  // the same by frames of the file from 0 on; the end is not part of it
  std::array<int64_t, 4> crop = {};          // x from, to, y from, to, of the displayed picture; zeros: all of it
  double fps = 0;                            // rate at which the file's frames are meant; 0: its own
  int64_t repeats = 1;
  bool operator==(const MediaCut&) const = default;
};

// The value of a key or column; null where it is missing.
using ValueOf = std::function<const nlohmann::json*(const char* key)>;

// Reads the keys of docs/data.md. Values may be texts, as of a CSV. Returns what is wrong, or "".
std::string read_cut(const ValueOf& value_of, MediaCut& cut);

}  // namespace vmoba::data
