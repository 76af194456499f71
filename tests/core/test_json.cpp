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
                        {std::string("\0\0\0\0", 4), "x.json:1:1"}};
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
