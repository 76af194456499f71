// JSON of others: what is wrong with it is said with file and line.
#include "core/json.h"

#include <fstream>

#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using test::contains;
using test::refusal_of;

TEST_CASE("what is no JSON is named with file, line and column") {
  CHECK(parse_json("{\"a\": [1, 2]}", "x.json")["a"][1] == 2);
  struct Case {
    std::string text, place;
  };
  const Case cases[] = {{"", "x.json:1:1"},
                        {"{", "x.json:1:2"},
                        {"{\"a\": 1,\n \"b\": nonsense}", "x.json:2:8"},
                        {"[1,\n2,\n3", "x.json:3:2"},
                        {"{\"a\": \"\xff\"}", "x.json:1:8"},
                        {std::string("\0\0\0\0", 4), "x.json:1:1"},
                        {"{\"a\": 1e999}", "x.json:1:"},  // beyond double's range
                        {"{\"a\":\n[0, -1e999]}", "x.json:2:"},
                        {"{\"a\": NaN}", "x.json:1:"},
                        {"{\"a\": 1, \"a", "x.json:1:"}};
  for (const Case& one : cases) {
    const std::string text = refusal_of([&] { parse_json(one.text, "some/x.json"); });
    INFO(one.text << " -> " << text);
    CHECK(contains(text, "some/x.json"));
    CHECK(contains(text, one.place));
  }
}

TEST_CASE("a value of another type is an error that names the file") {
  const auto object = parse_json("{\"a\": \"text\"}", "x.json");
  CHECK(contains(refusal_of([&] { use_json("x.json", [&] { return object.at("a").get<int>(); }); }), "'x.json'"));
  CHECK(contains(refusal_of([&] { use_json("x.json", [&] { return object.at("b").get<int>(); }); }), "'x.json'"));
}

TEST_CASE("a JSON file is read, or named") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/x.json";
  CHECK(contains(refusal_of([&] { read_json(path, 100, "a list"); }), path));
  std::ofstream(path) << "[1]";
  CHECK(read_json(path, 100, "a list").size() == 1);
  CHECK(contains(refusal_of([&] { read_json(path, 2, "a list"); }), path));
}

TEST_CASE("a thousand levels are refused where they begin, brackets in texts are none") {
  const std::string deep = "{\"a\":\n" + std::string(1000, '[') + std::string(1000, ']') + "}";
  CHECK(contains(refusal_of([&] { parse_json(deep, "x.json"); }), "x.json:2:100"));
  CHECK(contains(refusal_of([&] { parse_ordered_json(std::string(200'000, '{'), "x.json"); }), "levels"));
  CHECK_FALSE(try_parse_json(deep));
  const std::string text = "[\"" + std::string(1000, '[') + "\\\"" + std::string(1000, '{') + "\"]";
  CHECK(parse_json(text, "x.json")[0].get<std::string>().size() == 2001);
}

TEST_CASE("a zero character, which would cut every message that quotes it, is refused where it stands") {
  CHECK(contains(refusal_of([&] { parse_json("{\"a\":\n \"b\\u0000c\"}", "x.json"); }), "x.json:2:4"));
  CHECK(contains(refusal_of([&] { parse_ordered_json("{\"\\u0000\": 1}", "x.json"); }), "zero character"));
  CHECK_FALSE(try_parse_json("[\"\\u0000\"]"));
  CHECK(parse_json("[\"\\\\u0000\"]", "x.json")[0] == "\\u0000");  // a backslash and letters
}

TEST_CASE("a text that begins further down counts its lines from there; a long token is cut") {
  CHECK(contains(refusal_of([&] { parse_json("{\n]", "x.jsonl", 7); }), "x.jsonl:8:1"));
  const std::string long_token = refusal_of([&] { parse_json("[\"" + std::string(1 << 20, 'y'), "x.json"); });
  CHECK(contains(long_token, "x.json:1:"));
  CHECK(long_token.size() < 400);
}

TEST_CASE("objects keep the order of their keys where it counts") {
  const auto ordered = parse_ordered_json("{\"b\": 1, \"a\": 2}", "x.json");
  CHECK(ordered.begin().key() == "b");
}

TEST_CASE("counts are whole numbers that int64 holds") {
  CHECK(json_count(parse_json("9223372036854775807", "x")) == INT64_MAX);
  for (const char* other : {"9223372036854775808", "18446744073709551615", "-1", "1.0", "\"1\"", "null", "[1]"})
    CHECK_FALSE(json_count(parse_json(other, "x")));
}

TEST_CASE("a value in a message is short") {
  CHECK(json_text(parse_json("[1, \"x\"]", "x")) == "[1,\"x\"]");
  CHECK(json_text(nlohmann::json(std::string(5000, 'y'))).size() < 120);
}

TEST_CASE("a file of another kind in the place of JSON is named with its cure") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/x.json";
  std::ofstream(path) << "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
  CHECK(contains(refusal_of([&] { read_json(path, 1000, "an index"); }), "git lfs pull"));
  std::ofstream(path) << "{\"a\": [1, 2}";
  CHECK(contains(refusal_of([&] { read_json(path, 1000, "an index"); }), path + ":1:12"));
  CHECK(contains(refusal_of([&] { read_json(path, 1000, "an index"); }), "should be an index"));
}
