#include "apps/sample/prompts.h"

#include <charconv>
#include <map>
#include <random>
#include <set>

#include "core/check.h"
#include "core/config.h"
#include "core/file.h"
#include "core/json.h"

namespace vmoba::apps {
namespace {

using nlohmann::json;

constexpr int64_t kMaxPromptBytes = 64 << 20;

// A setting of a video by its names in the files of several tools.
struct Setting {
  std::vector<const char*> names;  // ours first
  const char* letter;              // musubi-tuner's option; "" where it has none
  void (*set)(VideoOrder&, const std::string& value, const std::string& where);
};

int64_t whole(const std::string& text, const std::string& where) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  VMOBA_CHECK_INPUT(error == std::errc() && end == text.data() + text.size(), "{}: expected a whole number, found '{}'",
                    where, text);
  return value;
}

double number(const std::string& text, const std::string& where) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  VMOBA_CHECK_INPUT(error == std::errc() && end == text.data() + text.size(), "{}: expected a number, found '{}'",
                    where, text);
  return value;
}

using Order = VideoOrder;
using Text = const std::string;

const std::vector<Setting>& settings() {
  static const std::vector<Setting> table = {
      {{"prompt", "caption", "text"}, "", [](Order& o, Text& v, Text&) { o.prompt = v; }},
      {{"negative_prompt", "negative"}, "n", [](Order& o, Text& v, Text&) { o.settings.negative_prompt = v; }},
      {{"image", "image_path"}, "i", [](Order& o, Text& v, Text&) { o.image = v; }},
      {{"last_image", "end_image_path"}, "ei", [](Order& o, Text& v, Text&) { o.last_image = v; }},
      {{"seed"}, "d", [](Order& o, Text& v, Text& w) { o.seed = whole(v, w); }},
      {{"width"}, "w", [](Order& o, Text& v, Text& w) { o.settings.width = whole(v, w); }},
      {{"height"}, "h", [](Order& o, Text& v, Text& w) { o.settings.height = whole(v, w); }},
      {{"frames", "num_frames"}, "f", [](Order& o, Text& v, Text& w) { o.settings.frames = whole(v, w); }},
      {{"fps"}, "", [](Order& o, Text& v, Text& w) { o.settings.fps = number(v, w); }},
      {{"steps", "num_inference_steps"}, "s", [](Order& o, Text& v, Text& w) { o.settings.steps = whole(v, w); }},
      {{"guidance", "guidance_scale"}, "g", [](Order& o, Text& v, Text& w) { o.settings.guidance = number(v, w); }},
      {{}, "l", [](Order& o, Text& v, Text& w) { o.settings.guidance = number(v, w); }},
      {{"shift", "flow_shift"}, "fs", [](Order& o, Text& v, Text& w) { o.settings.shift = number(v, w); }},
      {{"out", "output"}, "", [](Order& o, Text& v, Text&) { o.out = v; }},
  };
  return table;
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// Ranges as the configuration has them, and a seed where one is to be drawn.
VideoOrder finished(VideoOrder order, const std::string& where) {
  VMOBA_CHECK_INPUT(!order.prompt.empty(), "{}: expected a prompt, found none", where);
  VMOBA_CHECK_INPUT(order.seed >= -1, "{}: expected a seed of 0 or more, or -1 for one that is drawn, found {}", where,
                    order.seed);
  if (order.seed == -1) order.seed = drawn_seed();
  try {
    check_config("", order.settings);
  } catch (const Error& e) {
    throw_input("{}: {}", where, e.what());
  }
  return order;
}

// Where the next " --x" begins; dashes between spaces are a prompt's own.
size_t next_option(const std::string& line, size_t from) {
  size_t at = line.find(" --", from);
  while (at != std::string::npos && (at + 3 == line.size() || line[at + 3] == ' ')) at = line.find(" --", at + 3);
  return at;
}

VideoOrder from_line(const std::string& line, VideoOrder order, const std::string& where) {
  size_t next = next_option(line, 0);
  order.prompt = trimmed(line.substr(0, next));
  while (next != std::string::npos) {
    const size_t begin = next + 3;
    next = next_option(line, begin);
    const std::string option = trimmed(line.substr(begin, next == std::string::npos ? next : next - begin));
    const size_t space = option.find(' ');
    const std::string name = option.substr(0, space);
    const std::string value = space == std::string::npos ? "" : trimmed(option.substr(space));
    const Setting* found = nullptr;
    for (const Setting& setting : settings())
      if (!name.empty() && setting.letter == name) found = &setting;
    VMOBA_CHECK_INPUT(found != nullptr,
                      "{}: expected the options --w --h --f --d --s --g --l --fs --n --i --ei, found '--{}'", where,
                      name);
    VMOBA_CHECK_INPUT(!value.empty(), "{}: expected a value behind --{}, found none", where, name);
    found->set(order, value, fmt::format("{}: --{}", where, name));
  }
  return finished(std::move(order), where);
}

VideoOrder from_object(const json& object, VideoOrder order, const std::string& where) {
  if (object.is_string()) {
    order.prompt = object.get<std::string>();
    return finished(std::move(order), where);
  }
  VMOBA_CHECK_INPUT(object.is_object(), "{}: expected an object or a text, found {}", where, json_text(object));
  std::vector<std::string> known;
  for (const Setting& setting : settings()) known.insert(known.end(), setting.names.begin(), setting.names.end());
  for (const auto& [key, value] : object.items()) {
    if (value.is_null()) continue;
    const Setting* found = nullptr;
    for (const Setting& setting : settings())
      for (const char* name : setting.names)
        if (key == name) found = &setting;
    const std::string near = nearest_name(key, known);
    VMOBA_CHECK_INPUT(found != nullptr, "{}: unknown key '{}'{}", where, key,
                      near.empty() ? "" : fmt::format("; did you mean '{}'?", near));
    VMOBA_CHECK_INPUT(value.is_string() || value.is_number(), "{}: expected a text or number for '{}', found {}", where,
                      key, json_text(value));
    found->set(order, value.is_string() ? value.get<std::string>() : value.dump(), fmt::format("{}: {}", where, key));
  }
  return finished(std::move(order), where);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(trimmed(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return lines;
}

// What belongs to another kind of file would be drawn as a prompt.
void check_line(const std::string& line, const std::string& where) {
  VMOBA_CHECK_INPUT(!line.starts_with('{') && !line.starts_with("[{") && line != "[",
                    "{}: expected a prompt, found JSON; name the file .jsonl, or .json for a list", where);
}

void check_kind(const std::string& path) {
  for (const char* other : {".csv", ".tsv", ".yaml", ".yml", ".toml", ".xlsx", ".parquet", ".safetensors"})
    VMOBA_CHECK_INPUT(!path.ends_with(other),
                      "--prompts: expected a file of lines (.txt), .jsonl or .json, found '{}'; write a prompt on each "
                      "line of a .txt",
                      path);
}

std::vector<VideoOrder> from_lines(const std::string& text, const VideoOrder& common, const std::string& path,
                                   bool objects) {
  std::vector<VideoOrder> out;
  const std::vector<std::string> lines = lines_of(text);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].empty() || lines[i].starts_with('#')) continue;
    const std::string where = fmt::format("{}:{}", path, i + 1);
    if (!objects) check_line(lines[i], where);
    out.push_back(objects ? from_object(parse_json(lines[i], path, int64_t(i) + 1), common, where)
                          : from_line(lines[i], common, where));
  }
  return out;
}

std::vector<VideoOrder> from_json(const std::string& text, const VideoOrder& common, const std::string& path) {
  const json whole_file = parse_json(text, path);
  const json& list = whole_file.is_object() && whole_file.contains("data") ? whole_file["data"] : whole_file;
  VMOBA_CHECK_INPUT(list.is_array(), "{}: expected a list of objects, or one named data, found something else", path);
  std::vector<VideoOrder> out;
  for (size_t i = 0; i < list.size(); ++i) out.push_back(from_object(list[i], common, fmt::format("{}[{}]", path, i)));
  return out;
}

}  // namespace

int64_t drawn_seed() {
  std::random_device device;
  return int64_t(device() & 0x7fffffff);
}

std::vector<VideoOrder> read_prompts(const std::string& path, const VideoOrder& common) {
  check_kind(path);
  const std::string text = read_file(path, kMaxPromptBytes, "a file of prompts");
  const std::string without_mark = text.starts_with("\xEF\xBB\xBF") ? text.substr(3) : text;
  std::vector<VideoOrder> out;
  if (path.ends_with(".json"))
    out = from_json(without_mark, common, path);
  else
    out = from_lines(without_mark, common, path, path.ends_with(".jsonl"));
  VMOBA_CHECK_INPUT(!out.empty(), "--prompts: expected at least one prompt in '{}', found none", path);
  for (size_t i = 0; i < out.size(); ++i) out[i].index = int64_t(i);
  return out;
}

}  // namespace vmoba::apps
