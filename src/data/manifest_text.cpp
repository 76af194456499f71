#include "data/manifest_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "core/check.h"
#include "core/json.h"
#include "data/csv.h"

namespace vmoba::data {
namespace {

using nlohmann::json;

// The names that the tools of docs/data.md use, most specific first.
constexpr std::array kVideoNames = {"video_path", "image_path", "video",    "image", "file_path",
                                    "path",       "file_name",  "filename", "file"};
constexpr std::array kCaptionNames = {"caption", "prompt", "text", "cap", "captions"};

constexpr size_t kMaxUnusedKeys = 100;

template <size_t N>
std::string joined(const std::array<const char*, N>& names) {
  std::string out;
  for (const char* name : names) out += (out.empty() ? "" : ", ") + std::string(name);
  return out;
}

std::string_view without_bom(std::string_view text) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  return text;
}

// The value of `wanted`, or of the first usual name that is there; null where none is.
template <size_t N>
const json* find_value(const json& object, const std::string& wanted, const std::array<const char*, N>& usual) {
  if (!wanted.empty()) {
    const auto found = object.find(wanted);
    return found == object.end() ? nullptr : &*found;
  }
  for (const char* name : usual) {
    const auto found = object.find(name);
    if (found != object.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

// The text that pandas writes for a missing value is no caption.
std::string take_caption(std::string_view text, std::string& caption, bool& has_caption) {
  text = trim(text);
  caption = text == "NaN" || text == "nan" ? std::string() : std::string(text);
  has_caption = !caption.empty();
  return caption_problem(caption);
}

// A string, or the first of a list of strings; null and [] are "no caption". Returns what is wrong, or "".
std::string read_caption(const json* value, std::string& caption, bool& has_caption) {
  if (value && value->is_array()) value = value->empty() ? nullptr : &value->front();
  if (!value || value->is_null()) return "";
  if (!value->is_string())
    return fmt::format("expected a caption string or a list of them, found {}", value->type_name());
  return take_caption(value->get_ref<const std::string&>(), caption, has_caption);
}

void add(ManifestText& out, ManifestRecord record, std::string problem) {
  if (problem.empty() && record.media.empty()) problem = "expected a path, found an empty one";
  if (problem.empty() && record.media.find('\0') != std::string::npos)
    problem = "expected a path, found a zero byte in it";
  if (problem.empty())
    out.records.push_back(std::move(record));
  else
    out.problems.push_back({record.line, std::move(record.media), std::move(problem), record.by_list});
}

// The path of a mask; null, "" and the texts that pandas writes for a missing value are none.
std::string read_mask(const json* value, std::string& mask) {
  if (!value || value->is_null()) return "";
  if (!value->is_string()) return fmt::format("expected a path as mask_path, found {}", value->type_name());
  mask = std::string(trim(value->get_ref<const std::string&>()));
  if (mask == "NaN" || mask == "nan" || mask == "None") mask.clear();
  return mask.find('\0') == std::string::npos ? "" : "expected a path as mask_path, found a zero byte in it";
}

// What `object` says of part, rate, repeats and mask; its keys that say nothing to this program are noted.
std::string read_options(ManifestText& out, const json& object, std::set<const json*> used, ManifestRecord& record) {
  const auto value_of = [&](const char* key) -> const json* {
    const auto found = object.find(key);
    if (found == object.end()) return nullptr;
    used.insert(&*found);
    return &*found;
  };
  std::string problem = read_cut(value_of, record.cut);
  if (problem.empty()) problem = read_mask(value_of("mask_path"), record.mask);
  for (const auto& [key, value] : object.items())
    if (!used.count(&value) && out.unused_keys.size() < kMaxUnusedKeys) out.unused_keys.insert(key);
  return problem;
}

// `path` where the record's place names it already.
void add_object(ManifestText& out, const json& object, int64_t line, const ManifestColumns& columns,
                const std::string& path = "") {
  ManifestRecord record;
  record.line = line;
  record.by_list = path.empty();
  if (!object.is_object()) return add(out, record, fmt::format("expected a JSON object, found {}", object.type_name()));
  const json* media = find_value(object, columns.video, kVideoNames);
  if (path.empty() && (!media || !media->is_string()))
    return add(out, record,
               fmt::format(
                   "expected a path under {}, found {}; set data.video_column",
                   columns.video.empty() ? "one of the keys " + joined(kVideoNames) : "the key '" + columns.video + "'",
                   media ? media->type_name() : "none"));
  record.media = path.empty() ? std::string(trim(media->get_ref<const std::string&>())) : path;
  const json* caption = find_value(object, columns.caption, kCaptionNames);
  std::string problem = read_caption(caption, record.caption, record.has_caption);
  const std::string options = read_options(out, object, {media, caption}, record);
  add(out, std::move(record), problem.empty() ? options : problem);
}

int64_t line_of(std::string_view text, size_t position) {
  return 1 + std::count(text.begin(), text.begin() + static_cast<int64_t>(std::min(position, text.size())), '\n');
}

// Python writes NaN and Infinity outside strings, which JSON does not know: null in their place.
std::string without_nan(std::string_view text) {
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\' && i + 1 < text.size()) {
      out += c;
      out += text[++i];
      continue;
    }
    if (c == '"') in_string = !in_string;
    bool replaced = false;
    for (const std::string_view word : {"NaN", "-Infinity", "Infinity"}) {
      if (in_string || !text.substr(i).starts_with(word)) continue;
      out += "null";
      i += word.size() - 1;
      replaced = true;
      break;
    }
    if (!replaced) out += c;
  }
  return out;
}

// Nothing where it is no JSON.
std::optional<json> parse_leniently(std::string_view text) {
  std::optional<json> out = try_parse_json(text);
  return out ? out : try_parse_json(without_nan(text));
}

json parse_document(std::string_view text, const std::string& origin) {
  if (std::optional<json> out = parse_leniently(text)) return *std::move(out);
  return vmoba::parse_json(without_nan(text), origin);
}

bool is_json(std::string_view text, json::value_t type) {
  const std::optional<json> parsed = parse_leniently(text);
  return parsed && parsed->type() == type;
}

// Lines on which the elements of the array that starts at or after `from` begin. `text` is valid JSON.
std::vector<int64_t> element_lines(std::string_view text, size_t from) {
  std::vector<int64_t> lines;
  int64_t line = line_of(text, from);
  int depth = 0;
  bool in_string = false, expect_element = false;
  for (size_t i = from; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    if (c == ' ' || c == '\t' || c == '\r' || c == '\n') continue;
    if (depth == 1 && expect_element && c != ']') {
      lines.push_back(line);
      expect_element = false;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') expect_element = ++depth == 1;
    if (c == ']' || c == '}') {
      if (--depth == 0) break;
    }
    if (c == ',' && depth == 1) expect_element = true;
  }
  return lines;
}

}  // namespace

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  text = without_bom(text);
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::string caption_problem(std::string_view caption) {
  if (static_cast<int64_t>(caption.size()) > kMaxCaption_bytes)
    return fmt::format("expected a caption of at most {} bytes, found {}", kMaxCaption_bytes, caption.size());
  for (size_t i = 0; i < caption.size();) {
    const auto lead = static_cast<unsigned char>(caption[i]);
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xC2 && lead < 0xE0 ? 2
                          : (lead & 0xF0) == 0xE0       ? 3
                          : lead >= 0xF0 && lead < 0xF5 ? 4
                                                        : 0;
    bool valid = length != 0 && i + length <= caption.size();
    for (size_t k = 1; valid && k < length; ++k) valid = (static_cast<unsigned char>(caption[i + k]) & 0xC0) == 0x80;
    if (!valid)
      return fmt::format(
          "expected a caption in UTF-8, found byte 0x{:02X} at offset {}; convert it, for instance with iconv", lead,
          i);
    i += length;
  }
  if (const size_t zero = caption.find('\0'); zero != std::string_view::npos)
    return fmt::format("expected a caption of text, found a zero byte at offset {}", zero);
  return "";
}

namespace {

// More than one line, each an object of its own.
bool is_jsonl(std::string_view text) {
  text = trim(text);
  const size_t end = text.find('\n');
  if (!text.starts_with('{') || end == std::string_view::npos) return false;
  return is_json(trim(text.substr(0, end)), json::value_t::object);
}

}  // namespace

ManifestText parse_jsonl(std::string_view text, const ManifestColumns& columns) {
  ManifestText out;
  text = without_bom(text);
  if (trim(text).starts_with('[') && is_json(text, json::value_t::array)) return parse_json(text, "a list", columns);
  int64_t line = 0;
  while (!text.empty()) {
    ++line;
    const size_t end = text.find('\n');
    const std::string_view row = trim(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (row.empty()) continue;
    if (static_cast<int64_t>(row.size()) > kMaxManifestLine_bytes) {
      add(out, {"", "", false, line, true, {}, ""},
          fmt::format("expected a line of at most {} bytes, found {}", kMaxManifestLine_bytes, row.size()));
      continue;
    }
    if (const std::optional<json> object = parse_leniently(row))
      add_object(out, *object, line, columns);
    else
      add(out, {"", "", false, line, true, {}, ""}, "expected a JSON object on one line, found broken JSON");
  }
  return out;
}

ManifestText parse_json(std::string_view text, const std::string& origin, const ManifestColumns& columns) {
  text = without_bom(text);
  if (is_jsonl(text)) return parse_jsonl(text, columns);
  const json document = parse_document(text, origin);
  ManifestText out;
  const json* list = &document;
  size_t from = 0;
  if (document.is_object() && document.contains("data") && document["data"].is_array()) {
    list = &document["data"];
    const size_t key = text.find("\"data\"");
    from = key == std::string_view::npos ? text.size() : text.find('[', key);
  }
  if (list->is_array()) {
    const std::vector<int64_t> lines = element_lines(text, std::min(from, text.size()));
    for (size_t i = 0; i < list->size(); ++i) add_object(out, (*list)[i], i < lines.size() ? lines[i] : 1, columns);
    return out;
  }
  if (!document.is_object())
    throw_input("expected a JSON list of objects or an object of captions in {}, found {}", origin,
                document.type_name());
  for (const auto& [path, value] : document.items()) {
    ManifestRecord record;
    record.media = path;
    record.line = line_of(text, text.find(json(path).dump()));
    if (value.is_object()) {
      add_object(out, value, record.line, columns, path);
      continue;
    }
    std::string problem = read_caption(&value, record.caption, record.has_caption);
    add(out, std::move(record), std::move(problem));
  }
  return out;
}

namespace {

template <size_t N>
int64_t find_column(const std::vector<std::string>& header, const std::string& wanted,
                    const std::array<const char*, N>& usual) {
  const auto index = [&](std::string_view name) {
    for (size_t i = 0; i < header.size(); ++i)
      if (trim(header[i]) == name) return static_cast<int64_t>(i);
    return int64_t{-1};
  };
  if (!wanted.empty()) return index(wanted);
  for (const char* name : usual)
    if (const int64_t found = index(name); found >= 0) return found;
  return -1;
}

}  // namespace

namespace {

// The one of comma, tab and semicolon that the header has.
char separator_of(std::string_view text) {
  const std::string_view header = text.substr(0, text.find('\n'));
  for (const char separator : {',', '\t', ';'})
    if (header.find(separator) != std::string_view::npos) return separator;
  return ',';
}

// One row under its header: the values of its columns.
json row_object(const std::vector<std::string>& header, const std::vector<std::string>& fields) {
  json out = json::object();
  for (size_t i = 0; i < header.size(); ++i) out.emplace(std::string(trim(header[i])), fields[i]);
  return out;
}

}  // namespace

ManifestText parse_csv(std::string_view text, const std::string& origin, const ManifestColumns& columns,
                       char separator) {
  text = without_bom(text);
  CsvReader reader(text, separator == 0 ? separator_of(text) : separator);
  CsvRow header, row;
  if (!reader.next(header)) throw_input("expected a CSV header in {}:1, found an empty file", origin);
  if (!header.problem.empty()) throw_input("expected a CSV header in {}:1, found: {}", origin, header.problem);
  const int64_t video = find_column(header.fields, columns.video, kVideoNames);
  const int64_t caption = find_column(header.fields, columns.caption, kCaptionNames);
  if (video < 0)
    throw_input("expected the column {} in the header {}:1, found none; set data.video_column",
                columns.video.empty() ? "of paths (" + joined(kVideoNames) + ")" : "'" + columns.video + "'", origin);
  if (caption < 0 && !columns.caption.empty())
    throw_input("expected the column '{}' in the header {}:1, found none; set data.caption_column", columns.caption,
                origin);
  ManifestText out;
  while (reader.next(row)) {
    ManifestRecord record;
    record.line = row.line;
    std::string problem = row.problem;
    if (problem.empty() && row.fields.size() != header.fields.size())
      problem = fmt::format("expected {} fields as in the header, found {}", header.fields.size(), row.fields.size());
    if (problem.empty()) {
      record.media = std::string(trim(row.fields[static_cast<size_t>(video)]));
      if (caption >= 0)
        problem = take_caption(row.fields[static_cast<size_t>(caption)], record.caption, record.has_caption);
      const json object = row_object(header.fields, row.fields);
      const auto column = [&](int64_t i) -> const json* {
        const auto found = i < 0 ? object.end() : object.find(std::string(trim(header.fields[static_cast<size_t>(i)])));
        return found == object.end() ? nullptr : &*found;
      };
      const std::string options = read_options(out, object, {column(video), column(caption)}, record);
      if (problem.empty()) problem = options;
    }
    add(out, std::move(record), std::move(problem));
  }
  return out;
}

namespace {

// Without the blank lines at the end.
std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  text = without_bom(text);
  while (!text.empty()) {
    const size_t end = text.find('\n');
    lines.push_back(trim(text.substr(0, end)));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

}  // namespace

ManifestText parse_lines(std::string_view media, std::string_view captions, const std::string& origin,
                         const std::string& captions_origin) {
  const auto paths = split_lines(media), texts = split_lines(captions);
  if (paths.size() != texts.size())
    throw_input(
        "expected one line of {} per line of {}, found {} and {}; a video without a caption keeps its place as '\"\"'",
        captions_origin, origin, texts.size(), paths.size());
  ManifestText out;
  for (size_t i = 0; i < paths.size(); ++i) {
    ManifestRecord record;
    record.line = static_cast<int64_t>(i) + 1;
    record.media = std::string(paths[i]);
    record.caption = texts[i] == "\"\"" ? std::string() : std::string(texts[i]);
    record.has_caption = !record.caption.empty();
    std::string problem = caption_problem(record.caption);
    add(out, std::move(record), std::move(problem));
  }
  return out;
}

bool parse_caption_json(std::string_view text, const std::string& origin, const std::string& caption_key,
                        std::string& caption) {
  const json document = vmoba::parse_json(without_bom(text), origin);
  if (!document.is_object())
    throw_input("expected a JSON object with a caption in {}, found {}", origin, document.type_name());
  bool has_caption = false;
  const std::string problem = read_caption(find_value(document, caption_key, kCaptionNames), caption, has_caption);
  if (!problem.empty()) throw_input("{}: {}", origin, problem);
  return has_caption;
}

}  // namespace vmoba::data
