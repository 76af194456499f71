// Manifest formats as text -> records. No file is touched here.
//
// A record that cannot be used becomes a problem with its line; a text that is not the format at all (broken JSON,
// a CSV without a header) throws Error(kInput) naming `origin` and the line. Lines count from 1.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "data/media_cut.h"

namespace vmoba::data {

struct ManifestRecord {
  std::string media;  // as written
  std::string caption;
  bool has_caption = false;
  int64_t line = 0;
  bool by_list = false;  // an element of a list; else a key of an object, or a row
  MediaCut cut;
  std::string mask;  // as written
};

struct ManifestProblem {
  int64_t line = 0;
  std::string media;  // where it is known
  std::string message;
  bool by_list = false;
};

struct ManifestText {
  std::vector<ManifestRecord> records;
  std::vector<ManifestProblem> problems;
  std::set<std::string> unused_keys;  // keys or columns that say nothing to this program
};

// Which columns (CSV) or keys (JSON) hold path and caption; empty: the first of the usual names that is there.
struct ManifestColumns {
  std::string video, caption;
};

inline constexpr int64_t kMaxCaption_bytes = 64 << 10;
inline constexpr int64_t kMaxManifestLine_bytes = 1 << 20;

// NaN and Infinity, as Python writes them, are read as null everywhere.

// One JSON object per line; blank lines are skipped.
ManifestText parse_jsonl(std::string_view text, const ManifestColumns& columns);
// A list of objects, {"data": [...]}, or an object {path: caption, [captions] or {"caption": ...}}.
ManifestText parse_json(std::string_view text, const std::string& origin, const ManifestColumns& columns);
// RFC 4180: header line, quoted fields with doubled quotes, line breaks inside quotes.
// `separator` 0: of comma, tab and semicolon, the one that the header has.
ManifestText parse_csv(std::string_view text, const std::string& origin, const ManifestColumns& columns,
                       char separator = 0);
// Line i of `captions` belongs to line i of `media`; unequal counts throw.
ManifestText parse_lines(std::string_view media, std::string_view captions, const std::string& origin,
                         const std::string& captions_origin);

// {"caption": ...} of one file, as in name.json beside name.mp4. False where it has none of the usual keys.
bool parse_caption_json(std::string_view text, const std::string& origin, const std::string& caption_key,
                        std::string& caption);

// Without byte order mark and surrounding white space.
std::string_view trim(std::string_view text);
// Why a caption cannot be used (too long, not UTF-8), or "".
std::string caption_problem(std::string_view caption);

}  // namespace vmoba::data
