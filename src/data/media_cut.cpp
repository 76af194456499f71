#include "data/media_cut.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <vector>

namespace vmoba::data {
namespace {

using nlohmann::json;

constexpr int64_t kMaxRepeats = 1'000'000;
constexpr int64_t kLeastCrop = 8;  // pixels
constexpr double kLatest_s = 1e6, kMostFrames = 1e9, kFastest_fps = 1000;

constexpr std::array kStarts = {"start",      "start_s",         "start_sec",      "start_seconds",
                                "start_time", "start_timestamp", "Start_timestamp"};
constexpr std::array kEnds = {"end", "end_s", "end_sec", "end_seconds", "end_time", "end_timestamp", "End_timestamp"};
constexpr std::array kDurations = {"duration", "duration_s", "duration_sec", "duration_seconds"};
constexpr std::array kCounts = {"num_frames", "frames"};
constexpr std::array kStartFrames = {"start_frame", "frame_start"};
constexpr std::array kEndFrames = {"end_frame", "frame_end"};
constexpr std::array kSpans = {"timestamp", "timestamps", "span"};
constexpr std::array kFrameSpans = {"cut", "frame_idx"};
constexpr std::array kRates = {"fps", "source_fps"};
constexpr std::array kRepeats = {"repeats", "num_repeats"};

// Also a ratio: "30000/1001".
std::optional<double> number_of(std::string_view text) {
  if (const size_t slash = text.find('/'); slash != std::string_view::npos) {
    if (text.find('/', slash + 1) != std::string_view::npos) return std::nullopt;
    const auto above = number_of(text.substr(0, slash)), below = number_of(text.substr(slash + 1));
    return above && below && *below > 0 ? std::optional<double>(*above / *below) : std::nullopt;
  }
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  double out = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return out;
}

// Seconds, or "H:M:S" and "M:S" with a fraction behind a point or comma.
std::optional<double> seconds_of(std::string text) {
  for (char& c : text)
    if (c == ',') c = '.';
  double out = 0;
  std::string_view rest(text);
  for (int parts = 0; parts < 3; ++parts) {
    const size_t colon = rest.find(':');
    const auto part = number_of(rest.substr(0, colon));
    if (!part || (parts > 0 && *part >= 60)) return std::nullopt;
    out = 60 * out + *part;
    if (colon == std::string_view::npos) return out;
    rest.remove_prefix(colon + 1);
  }
  return std::nullopt;
}

std::optional<double> scalar(const json& value, bool is_time) {
  if (value.is_number()) return value.get<double>();
  if (!value.is_string()) return std::nullopt;
  const std::string& text = value.get_ref<const std::string&>();
  return is_time ? seconds_of(text) : number_of(text);
}

// Null, NaN and empty texts say nothing.
bool is_given(const json* value) {
  if (!value || value->is_null()) return false;
  if (value->is_number_float()) return !std::isnan(value->get<double>());
  if (!value->is_string()) return !value->empty();
  const std::string& text = value->get_ref<const std::string&>();
  return text.find_first_not_of(' ') != std::string::npos && text != "nan" && text != "NaN" && text != "None";
}

// The parts of a list, which may be the text "[1, 2]", "1:2" or "['0:00:01', '0:00:02']".
std::vector<json> list_of(const json& value, bool is_time) {
  if (value.is_array()) return value.get<std::vector<json>>();
  if (!value.is_string()) return {};
  std::string text = value.get<std::string>();
  char separator = !is_time && text.find(',') == std::string::npos ? ':' : ',';
  std::vector<json> out;
  std::string part;
  for (const char c : text + separator) {
    if (c == separator) {
      out.emplace_back(part);
      part.clear();
    } else if (c != '[' && c != ']' && c != '(' && c != ')' && c != '\'' && c != '"') {
      part += c;
    }
  }
  return out;
}

class CutReader {
 public:
  explicit CutReader(const ValueOf& value_of) : value_of_(value_of) {}

  // The first of `keys` that is given, within [low, high].
  template <size_t N>
  void read(const std::array<const char*, N>& keys, bool is_time, double low, double high, double& out,
            bool whole = false) {
    for (const char* key : keys) {
      const json* value = value_of_(key);
      if (!is_given(value)) continue;
      const auto number = scalar(*value, is_time);
      if (!number || !(*number >= low && *number <= high) || (whole && *number != std::floor(*number)))
        return fail(key,
                    fmt::format("{} from {:g} to {:g}",
                                is_time ? "a time"
                                : whole ? "a whole number"
                                        : "a number",
                                low, high),
                    *value);
      out = *number;
      return;
    }
  }
  template <size_t N>
  void read(const std::array<const char*, N>& keys, double low, double high, int64_t& out) {
    double number = static_cast<double>(out);
    read(keys, false, low, high, number, /*whole=*/true);
    out = std::llround(number);
  }
  // The numbers of a list of `count`, each at least 0; false where it is not given.
  template <size_t N>
  bool read_list(const std::array<const char*, N>& keys, bool is_time, size_t count, const char* expected,
                 std::vector<double>& out) {
    for (const char* key : keys) {
      const json* value = value_of_(key);
      if (!is_given(value)) continue;
      out.clear();
      for (const json& part : list_of(*value, is_time)) {
        const auto number = scalar(part, is_time);
        if (number && *number >= 0 && *number <= kMostFrames) out.push_back(*number);
      }
      bool ordered = out.size() == count;
      for (size_t i = 0; ordered && i + 1 < count; i += 2) ordered = out[i] < out[i + 1];
      if (ordered) return true;
      fail(key, expected, *value);
      return false;
    }
    return false;
  }
  const std::string& problem() const { return problem_; }

 private:
  void fail(const char* key, const std::string& expected, const json& found) {
    if (problem_.empty())
      problem_ = fmt::format("expected {} under '{}', found {}", expected, key,
                             found.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 100));
  }
  const ValueOf& value_of_;
  std::string problem_;
};

std::string take_crop(const std::vector<double>& list, std::array<int64_t, 4>& crop) {
  for (size_t i = 0; i < crop.size(); ++i) {
    if (list[i] != std::floor(list[i]))
      return fmt::format("expected whole pixels under 'crop', found {:g}; shares of the picture are not pixels",
                         list[i]);
    crop[i] = std::llround(list[i]);
  }
  const int64_t width = crop[1] - crop[0], height = crop[3] - crop[2];
  if (width >= kLeastCrop && height >= kLeastCrop) return "";
  return fmt::format(
      "expected a crop of at least {0} x {0} pixels, found {1} x {2}; shares of the picture are not "
      "pixels",
      kLeastCrop, width, height);
}

}  // namespace

std::string read_cut(const ValueOf& value_of, MediaCut& cut) {
  CutReader reader(value_of);
  std::vector<double> list;
  reader.read(kStarts, true, 0, kLatest_s, cut.start_s);
  reader.read(kEnds, true, 0, kLatest_s, cut.end_s);
  // Without a start they say what the file is, which its bytes say better.
  double length_s = 0;
  int64_t count = 0;
  if (cut.start_s >= 0 && cut.end_s < 0) reader.read(kDurations, true, 0, kLatest_s, length_s);
  if (length_s > 0) cut.end_s = cut.start_s + length_s;
  if (reader.read_list(kSpans, true, 2, "two times, from and to,", list)) {
    cut.start_s = list[0];
    cut.end_s = list[1];
  }
  reader.read(kStartFrames, 0, kMostFrames, cut.start_frame);
  reader.read(kEndFrames, 0, kMostFrames, cut.end_frame);
  if (cut.start_frame >= 0 && cut.end_frame < 0) reader.read(kCounts, 0, kMostFrames, count);
  if (count > 0) cut.end_frame = cut.start_frame + count;
  if (reader.read_list(kFrameSpans, false, 2, "two frames, from and to,", list)) {
    cut.start_frame = std::llround(list[0]);
    cut.end_frame = std::llround(list[1]);
  }
  if (reader.read_list(std::array{"crop"}, false, 4, "[x from, x to, y from, y to] in pixels", list))
    if (const std::string problem = take_crop(list, cut.crop); !problem.empty()) return problem;
  reader.read(kRates, false, 0, kFastest_fps, cut.fps);
  reader.read(kRepeats, 1, kMaxRepeats, cut.repeats);
  if (!reader.problem().empty()) return reader.problem();
  if (cut.end_s >= 0 && cut.end_s <= std::max(0.0, cut.start_s))
    return fmt::format("expected an end after the start, found {} s and {} s", cut.end_s, std::max(0.0, cut.start_s));
  if (cut.end_frame >= 0 && cut.end_frame <= std::max<int64_t>(0, cut.start_frame))
    return fmt::format("expected an end after the start, found frames {} and {}", cut.end_frame,
                       std::max<int64_t>(0, cut.start_frame));
  return "";
}

}  // namespace vmoba::data
