#include "readers/damage.h"

#include <algorithm>
#include <array>
#include <iterator>
#include "core/json.h"

namespace vmoba::test {
namespace {

using Json = nlohmann::ordered_json;

// Stands for a text that nlohmann's writer cannot write.
const std::string kPlace = "\x01PLACE\x01";

std::string deep(size_t levels) {
  return std::string(levels, '[') + std::string(levels, ']');
}

std::string long_text() {
  std::string out(5000, 'y');
  out.front() = out.back() = '"';
  return out;
}

const std::vector<std::string>& values() {
  static const std::vector<std::string> all = {"null",
                                               "true",
                                               "0",
                                               "-1",
                                               "1.5",
                                               "NaN",
                                               "1e999",
                                               "1e300",
                                               "9223372036854775807",
                                               "18446744073709551615",
                                               "-9223372036854775808",
                                               "99999999999999999999999",
                                               "\"\"",
                                               "\"x\"",
                                               "\"../../x\"",
                                               "\"\\u0000\"",
                                               long_text(),
                                               "[]",
                                               "{}",
                                               "[[1, 2], [3]]",
                                               "{\"a\": {\"b\": []}}",
                                               "[1, \"x\", null]",
                                               deep(90),
                                               deep(100'000),
                                               "\"\xff\""};
  return all;
}

// Of each list and object the first `most` entries and the last one.
void find_places(const Json& json, const Json::json_pointer& place, size_t most, std::vector<Json::json_pointer>& out) {
  out.push_back(place);
  if (!json.is_structured()) return;
  size_t number = 0;
  for (const auto& entry : json.items()) {
    ++number;
    if (number > most && number < json.size()) continue;
    find_places(entry.value(), json.is_object() ? place / entry.key() : place / (number - 1), most, out);
  }
}

std::vector<Json::json_pointer> places_in(const Json& json, size_t most) {
  std::vector<Json::json_pointer> out;
  find_places(json, Json::json_pointer(), most, out);
  return out;
}

// `json` with `text` at `place`.
std::string replaced(Json json, const Json::json_pointer& place, const std::string& text) {
  json[place] = kPlace;
  std::string out = json.dump(1);
  const std::string mark = Json(kPlace).dump();
  const size_t at = out.find(mark);
  return out.replace(at, mark.size(), text);
}

std::string without(Json json, const Json::json_pointer& place) {
  if (place.empty()) return "";
  Json& parent = json[place.parent_pointer()];
  if (parent.is_array())
    parent.erase(size_t(std::stoul(place.back())));
  else
    parent.erase(place.back());
  return json.dump(1);
}

// Pieces that mean something to one reader or another.
const char* const kPieces[] = {"{",     "}",       "[",
                               "]",     "\"",      ":",
                               ",",     "\\u0000", "\\",
                               "NaN",   "-",       "1e999",
                               "null",  "\n",      "\r\n",
                               "\t",    "\xff",    "\xef\xbb\xbf",
                               "- ",    "? ",      "&a ",
                               "*a",    "<<: ",    "|",
                               " #",    "--w ",    "--d -1",
                               "--f x", " --",     "\"data\"",
                               "lora_", "0",       "99999999999999999999"};

void put_number(std::string& bytes, size_t at, RandomStream& random) {
  const uint64_t value = std::array<uint64_t, 7>{
      0, 1, ~uint64_t{0}, 0x7FFFFFFF, 0x80000000, 0x7FFFFFFFFFFFFFFF, uint64_t{1} << 40}[random.below(7)];
  const size_t length = std::array<size_t, 3>{2, 4, 8}[random.below(3)];
  const bool big = random.below(2) == 0;
  for (size_t i = 0; i < length && at + i < bytes.size(); ++i)
    bytes[at + i] = char(value >> (8 * (big ? length - 1 - i : i)));
}

void change_bytes(std::string& bytes, RandomStream& random) {
  if (bytes.empty()) return;
  size_t at = random.below(bytes.size());
  if (random.below(3) == 0) at = random.below(std::min<size_t>(bytes.size(), 64));  // where the headers are
  switch (random.below(8)) {
    case 0:
      bytes[at] = char(random.below(256));
      break;
    case 1:
      bytes[at] = char(bytes[at] ^ (1 << random.below(8)));
      break;
    case 2:
      put_number(bytes, at, random);
      break;
    case 3:
      bytes.erase(at, 1 + random.below(16));
      break;
    case 4:
      bytes.insert(at, bytes.substr(random.below(bytes.size()), random.below(64)));
      break;
    case 5:
      bytes.insert(at, kPieces[random.below(std::size(kPieces))]);
      break;
    case 6:
      for (size_t i = at; i < std::min(bytes.size(), at + random.below(64)); ++i) bytes[i] = char(random.below(256));
      break;
    default:
      bytes.resize(at);
      break;
  }
}

std::string changed_json(const std::string& text, RandomStream& random) {
  if (!try_parse_json(text)) return text;  // of too many levels, too: this test goes down them by recursion
  const Json json = Json::parse(text);
  const auto places = places_in(json, SIZE_MAX);
  const Json::json_pointer& place = places[random.below(places.size())];
  if (random.below(4) == 0) return without(json, place);
  return replaced(json, place, values()[random.below(values().size())]);
}

}  // namespace

std::string damaged(const std::string& bytes, bool is_json, RandomStream& random) {
  std::string out = bytes;
  for (uint64_t changes = 1 + random.below(4); changes > 0; --changes) {
    if (is_json && random.below(2) == 0)
      out = changed_json(out, random);
    else
      change_bytes(out, random);
  }
  return out;
}

std::vector<std::string> wrong_json(const std::string& text) {
  const Json json = Json::parse(text);
  std::vector<std::string> out;
  // A vocabulary's thousands of entries are alike.
  constexpr size_t kMost = 32;
  for (const Json::json_pointer& place : places_in(json, kMost)) {
    for (const std::string& value : values()) out.push_back(replaced(json, place, value));
    out.push_back(without(json, place));
  }
  return out;
}

}  // namespace vmoba::test
