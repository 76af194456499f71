#include "core/config.h"

#include <cmath>
#include <fstream>
#include <limits>

#include "core/check.h"
#include "core/every_kind_config.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using test::BigConfig;
using test::visitor;

namespace {

// The message with which `text` and `overrides` are refused; "" where they are not.
std::string refusal(const std::string& text, const std::vector<std::string>& overrides = {}) {
  BigConfig config;
  try {
    parse_config(text, "run.yaml", overrides, visitor(config));
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::kInput);
    return e.what();
  }
  return "";
}

BigConfig parsed(const std::string& text, const std::vector<std::string>& overrides = {}) {
  BigConfig config;
  parse_config(text, "run.yaml", overrides, visitor(config));
  return config;
}

bool contains(const std::string& text, const std::string& part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("values are read and the silent ones keep their defaults") {
  const BigConfig c = parsed(
      "steps: 12\nrate: 2.5e-3\non: false\nname: two words\n"
      "sizes: [1, 2, 3]\nweights:\n  - 0.5\n  - 1\nwords: [a, 'b c']\n"
      "inner:\n  mode: fast\nitems:\n  - mode: slow\n    depth: 3\n  - {}\n");
  CHECK(c.steps == 12);
  CHECK(c.rate == 0.0025);
  CHECK_FALSE(c.on);
  CHECK(c.name == "two words");
  CHECK(c.sizes == std::vector<int64_t>{1, 2, 3});
  CHECK(c.weights == std::vector<double>{0.5, 1.0});
  CHECK(c.words == std::vector<std::string>{"a", "b c"});
  CHECK(c.inner.mode == "fast");
  CHECK(c.inner.depth == 1);
  REQUIRE(c.items.size() == 2);
  CHECK(c.items[0].depth == 3);
  CHECK(c.items[1].mode == "slow");
  CHECK(parsed("").steps == BigConfig{}.steps);
  CHECK(parsed("# only a comment\n").steps == BigConfig{}.steps);
  CHECK(parsed("inner:\n").inner.depth == 1);  // an empty group is a group
}

TEST_CASE("numbers are decimal; whole floats are integers") {
  CHECK(parsed("steps: 1e3").steps == 1000);
  CHECK(parsed("steps: 2.0").steps == 2);
  CHECK(parsed("steps: +7").steps == 7);
  CHECK(parsed("steps: 010").steps == 10);  // not octal
  CHECK(parsed("steps: 9223372036854775807").steps == std::numeric_limits<int64_t>::max());
  CHECK(parsed("rate: 3").rate == 3.0);
  CHECK(parsed("rate: .5").rate == 0.5);
  for (const char* bad : {"steps: 1.5", "steps: 0x10", "steps: 9223372036854775808", "steps: 1e30", "steps: 1_000",
                          "steps: 5k", "steps: ''", "steps: true", "steps: 1 2", "rate: .inf", "rate: .nan",
                          "rate: 0x1p3", "rate: nan", "rate: 1e999", "rate: 1,5", "on: 1", "on: maybe"}) {
    INFO(bad);
    CHECK(refusal(bad) != "");
  }
}

TEST_CASE("a message names file, line and key, what was expected and what was found") {
  CHECK(refusal("name: x\ninner:\n  depth: deep\n") == "run.yaml:3: inner.depth: expected an integer, found 'deep'");
  CHECK(refusal("rate: -1\n") == "run.yaml:1: rate: expected > 0, found -1");
  CHECK(refusal("inner:\n  depth: 99\n") == "run.yaml:2: inner.depth: expected 1 .. 10, found 99");
  CHECK(refusal("inner: {mode: fats}") ==
        "run.yaml:1: inner.mode: expected one of slow, fast, found 'fats'; did you mean 'fast'?");
  CHECK(refusal("sizes: [1, 2]") == "run.yaml:1: sizes: expected 3 values, found 2");
  CHECK(contains(refusal("sizes: [1, 0, 2]"), "sizes[1]: expected 3 values, each >= 1, found 0"));
  CHECK(contains(refusal("items:\n  - depth: 2\n  - depth: 0\n"), "run.yaml:3: items[1].depth"));
  CHECK(contains(refusal("sizes: 3"), "expected a list, found '3'"));
  CHECK(contains(refusal("steps: [3]"), "expected an integer, found a list"));
  CHECK(contains(refusal("steps: {a: 1}"), "expected an integer, found a group of keys"));
  CHECK(contains(refusal("name:"), "expected a text, found nothing"));
  CHECK(contains(refusal("inner: 3"), "inner: expected a group of keys, found a single value"));
  CHECK(contains(refusal("items: 3"), "expected a list of groups"));
  CHECK(contains(refusal("items: [3]"), "items[0]: expected a group of keys"));
  CHECK(contains(refusal("- a\n- b\n"), "expected 'key: value' lines"));
  CHECK(contains(refusal("name: [x\n"), "run.yaml:"));
}

TEST_CASE("unknown keys are refused and the nearest known one is named") {
  CHECK(refusal("step: 3") == "run.yaml:1: step: unknown key; did you mean 'steps'?");
  CHECK(refusal("inner:\n  dept: 3") == "run.yaml:2: inner.dept: unknown key; did you mean 'inner.depth'?");
  CHECK(refusal("items: [{dpeth: 1}]") == "run.yaml:1: items[0].dpeth: unknown key; did you mean 'items[0].depth'?");
  CHECK(contains(refusal("qqqqqqqqqqqqqqqqqq: 3"), "unknown key; known here: steps, rate, on"));
  // A key of another group, or of none, is found where it is.
  CHECK(refusal("depth: 3") == "run.yaml:1: depth: unknown key; did you mean 'inner.depth'?");
  CHECK(refusal("dept: 3") == "run.yaml:1: dept: unknown key; did you mean 'inner.depth'?");
  CHECK(refusal("inner: {steps: 3}") == "run.yaml:1: inner.steps: unknown key; did you mean 'steps'?");
  const std::string message = refusal(std::string(1000, 'k') + ": 1");
  CHECK(contains(message, "unknown key"));
  CHECK(message.size() < 500);
}

TEST_CASE("nearest names") {
  CHECK(nearest_name("lr", {"lr", "rl"}) == "lr");
  CHECK(nearest_name("learning_rat", {"seed", "learning_rate"}) == "learning_rate");
  CHECK(nearest_name("xyzzy", {"seed", "learning_rate"}) == "");
  CHECK(nearest_name("", {}) == "");
  CHECK(nearest_name("ab", {}) == "");
}

TEST_CASE("duplicate keys, anchors, merge keys, tags and second documents are refused") {
  CHECK(contains(refusal("steps: 1\nname: x\nsteps: 2\n"), "run.yaml:3: expected each key once, found 'steps' again"));
  CHECK(contains(refusal("inner: {depth: 1, depth: 2}"), "'depth' again"));
  CHECK(contains(refusal("items: [{depth: 1, depth: 2}]"), "'depth' again"));
  CHECK(parsed("steps: 1\ninner: {depth: 2}\nitems: [{depth: 3}, {depth: 4}]").items.size() == 2);  // not the same map
  CHECK(contains(refusal("name: x\nwords: [\"a\\0b\"]"), "2: expected text, found a zero byte behind 'a'"));
  CHECK(contains(refusal("words: [&x a, b]"), "anchor"));
  CHECK(contains(refusal("inner: &x {depth: 1}"), "anchor"));
  CHECK(contains(refusal("words: &x\n  - *x\n"), "anchor"));
  CHECK(refusal("words: [*x]") != "");
  CHECK(contains(refusal("<<: {steps: 1}"), "merge key"));
  CHECK(contains(refusal("name: !!binary aGk="), "tag"));
  CHECK(contains(refusal("steps: 1\n---\nsteps: 2\n"), "second"));
  CHECK(contains(refusal("? [a, b]\n: 1\n"), "plain word as key"));
  CHECK(contains(refusal("words: " + std::string(40, '[') + std::string(40, ']')), "nested levels"));
  CHECK(contains(refusal(std::string(2 << 20, ' ')), "1048576 bytes"));
  // The same characters inside texts mean nothing.
  CHECK(parsed("name: cats & dogs * 2").name == "cats & dogs * 2");
  CHECK(parsed("name: \"a \\\"b & c\\\" *d\"").name == "a \"b & c\" *d");
  CHECK(parsed("name: |\n  &x *y <<\n").name == "&x *y <<\n");
}

TEST_CASE("overrides win over the file, make missing groups and take YAML values") {
  const BigConfig c = parsed("steps: 1\ninner: {depth: 2}\n",
                             {"steps=5", "inner.mode=fast", "sizes=[4,5,6]", "words=[x, 'y z']", "name=a=b"});
  CHECK(c.steps == 5);
  CHECK(c.inner.depth == 2);
  CHECK(c.inner.mode == "fast");
  CHECK(c.sizes == std::vector<int64_t>{4, 5, 6});
  CHECK(c.words == std::vector<std::string>{"x", "y z"});
  CHECK(c.name == "a=b");
  CHECK(parsed("", {"inner.depth=3"}).inner.depth == 3);
  CHECK(parsed("", {"steps=5", "steps=6"}).steps == 6);
  CHECK(parsed("", {"items=[{depth: 2}]"}).items.at(0).depth == 2);
  CHECK(parsed("", {"name=''"}).name == "");
}

TEST_CASE("an override of a text is the text, whatever YAML would make of it") {
  for (const char* text : {"/x/a #1", "/x/a ",       " /x/a",    "a: b",    "[a]",  "{a",   "*a",  "&a", "!a",
                           "@a",      "%a",          "- a",      "~",       "null", "true", "010", "#",  "",
                           "it's",    "'a' and 'b'", "\"a\" 'b", "a\nb: c", "a\tb", "a\\n", "'",   "<<"}) {
    INFO(text);
    CHECK(parsed("name: file\n", {std::string("name=") + text}).name == text);
    CHECK(parsed("", {std::string("name=") + text}).name == text);
    // What is printed reads back.
    BigConfig config = parsed("", {std::string("name=") + text});
    CHECK(parsed(config_to_yaml(visitor(config))).name == text);
  }
  // Quotes around all of it are YAML's, as they were.
  CHECK(parsed("", {"name='a #1 '"}).name == "a #1 ");
  CHECK(parsed("", {"name='it''s'"}).name == "it's");
  CHECK(parsed("", {"name=\"a\\n\""}).name == "a\n");
  // A word of a choice may have a comment behind it, as before.
  CHECK(parsed("", {"inner.mode=fast # x"}).inner.mode == "fast");
  // The last one counts, also where one of them sets a whole list.
  CHECK(parsed("", {"name=a #1", "name=b #2"}).name == "b #2");
}

TEST_CASE("an override reaches into a list of groups") {
  const std::string two = "items: [{depth: 2}, {depth: 3}]";
  const BigConfig c = parsed(two, {"items[1].depth=9", "items[0].mode=fast"});
  REQUIRE(c.items.size() == 2);
  CHECK((c.items[0].depth == 2 && c.items[0].mode == "fast"));
  CHECK((c.items[1].depth == 9 && c.items[1].mode == "slow"));
  CHECK(refusal(two, {"items[1].depth=x"}) == "command line: items[1].depth: expected an integer, found 'x'");
  CHECK(contains(refusal(two, {"items[2].depth=1"}),
                 "command line: items[2].depth: expected 'items[2]' to be in a "
                 "list of more than 2 groups, found 2"));
  CHECK(contains(refusal("", {"items[0].depth=1"}), "found no list"));
  for (const char* odd : {"items[].depth=1", "items[-1].depth=1", "items[x].depth=1", "items[0.depth=1"})
    CHECK(contains(refusal(two, {odd}), "unknown key"));
}

TEST_CASE("retired keys are handed over and seen by no field") {
  RetiredKeys retired{{"inner.size", "steps_2", "items.old", "none.at.all"}, {}};
  BigConfig c;
  parse_config("steps: 3\nsteps_2: 4\ninner:\n  size: big\n  depth: 2\n", "run.yaml", {"inner.size='bigger '"},
               visitor(c), &retired);
  CHECK(c.steps == 3);
  CHECK(c.inner.depth == 2);
  CHECK(retired.found == std::map<std::string, std::string>{{"inner.size", "bigger "}, {"steps_2", "4"}});
  CHECK(contains(refusal("steps_2: 4"), "unknown key"));  // where the caller knows of none
  const auto from = [&](const std::string& text) { parse_config(text, "run.yaml", {}, visitor(c), &retired); };
  CHECK_THROWS_AS(from("inner: {size: [1]}"), Error);
  CHECK_NOTHROW(from("items: [{depth: 1}]"));
}

TEST_CASE("a wrong override is blamed on the command line") {
  CHECK(refusal("steps: 1", {"steps=many"}) == "command line: steps: expected an integer, found 'many'");
  CHECK(refusal("", {"inner.dept=2"}) == "command line: inner.dept: unknown key; did you mean 'inner.depth'?");
  CHECK(refusal("", {"sizes=[1,2,x]"}) == "command line: sizes[2]: expected an integer, found 'x'");
  CHECK(
      contains(refusal("step: 1", {"steps=2"}), "run.yaml:1: step: unknown key"));  // the file's fault stays the file's
  CHECK(contains(refusal("stepsize: 1", {"steps=2"}), "run.yaml:1: stepsize"));
  for (const char* bad : {"steps", "=5", "", ".steps=5", "steps.=5", "inner..depth=5"}) {
    INFO(bad);
    CHECK(contains(refusal("", {bad}), "command line: expected key.sub=value"));
  }
  CHECK(contains(refusal("steps: 1", {"steps.depth=5"}), "expected 'steps' to be a group of keys"));
  CHECK(contains(refusal("", {"inner.mode=a: b"}), "needs quotes"));
  CHECK(contains(refusal("", {"steps=x\nsteps: 3"}), "found several lines"));
  CHECK(contains(refusal("", {"words=[a, b"}), "command line: words"));
  // Groups that the file does not have.
  CHECK(contains(refusal("steps: 1", {"iner.depth=2"}), "command line: iner: unknown key"));
  CHECK(contains(refusal("inner: {depth: 1}", {"inner.mode.x=2"}), "command line: inner.mode: expected"));
  CHECK(contains(refusal("", {"steps="}), "found nothing"));
  CHECK(contains(refusal("", {"words=&a [*a]"}), "anchor"));
}

TEST_CASE("what is written is read back to the same values") {
  BigConfig c;
  c.steps = -9223372036854775807;
  c.rate = 0.1 + 0.2;
  c.on = false;
  c.name = "q\"uote's \\ # & * : - [x] {y}\n\ttab \x01 \xe4\xb8\xad\xe6\x96\x87 %d";
  c.sizes = {1, 1000000007, 3};
  c.weights = {1e-300, 5e300, -0.0, 1.0 / 3};
  c.words = {"", " ", "yes", "null", "~", "1e3", "0x1", "- a", "a: b", "!!tag", "---", "\xf0\x9f\xa6\x8a"};
  c.inner.mode = "fast";
  c.items.resize(3);
  c.items[1].depth = 10;
  const std::string yaml = config_to_yaml(visitor(c));
  INFO(yaml);
  const BigConfig back = parsed(yaml);
  CHECK(back.steps == c.steps);
  CHECK(back.rate == c.rate);
  CHECK(back.on == c.on);
  CHECK(back.name == c.name);
  CHECK(back.sizes == c.sizes);
  CHECK(back.weights == c.weights);
  CHECK(back.words == c.words);
  CHECK(back.inner.mode == c.inner.mode);
  REQUIRE(back.items.size() == 3);
  CHECK(back.items[1].depth == 10);
  CHECK(config_to_yaml(visitor(const_cast<BigConfig&>(back))) == yaml);
  // Empty lists too.
  BigConfig empty;
  empty.weights.clear();
  empty.words.clear();
  empty.items.clear();
  const BigConfig none = parsed(config_to_yaml(visitor(empty)));
  CHECK(none.weights.empty());
  CHECK(none.items.empty());
}

TEST_CASE("the keys that were set are told apart from those that keep their defaults") {
  BigConfig c;
  CHECK(parse_config("steps: 100\ninner: {depth: 2}\nsizes: [3, 4, 5]\n", "run.yaml", {"name=x"}, visitor(c)) ==
        std::set<std::string>{"inner.depth", "name", "sizes", "steps"});
  CHECK(load_config("", {}, visitor(c)).empty());
  const auto values = config_values(visitor(c));
  CHECK(values.at("inner.depth") == "2");
  CHECK(values.at("inner.mode") == "\"slow\"");
  CHECK(values.at("sizes") == "[3, 4, 5]");
  CHECK_FALSE(values.contains("items"));
}

namespace {

// A choice whose words have fields of their own.
struct ShapeConfig {
  std::string shape = "circle";
  int64_t radius = 1, width = 2, colour = 3;

  void visit(ConfigVisitor& v) {
    v.field("shape", shape, "Kind of shape.", one_of({"circle", "square"}));
    v.kind_fields("shape", shape,
                  {{"circle", [this](ConfigVisitor& own) { own.field("radius", radius, "Radius."); }},
                   {"square", [this](ConfigVisitor& own) { own.field("width", width, "Width."); }}});
    v.field("colour", colour, "Colour.");
  }
};

struct DrawingConfig {
  ShapeConfig first;
  void visit(ConfigVisitor& v) { v.group("first", "A shape.", first); }
};

}  // namespace

TEST_CASE("fields of one word of a choice are known where it is chosen, and documented for every word") {
  const auto read = [](const std::string& text) {
    DrawingConfig c;
    parse_config(text, "run.yaml", {}, [&](ConfigVisitor& v) { c.visit(v); });
    return c;
  };
  CHECK(read("first: {radius: 7}").first.radius == 7);
  CHECK(read("first: {width: 7, shape: square}").first.width == 7);
  CHECK(contains(test::refusal_of([&] { read("first: {width: 7}"); }), "first.width: unknown key"));
  DrawingConfig c = read("first: {shape: square}");
  const auto visit = [&](ConfigVisitor& v) { c.visit(v); };
  CHECK(config_to_yaml(visit) == "first:\n  shape: \"square\"\n  width: 2\n  colour: 3\n");
  const std::string markdown = config_to_markdown(visit);
  CHECK(contains(markdown, "### first.shape: circle"));
  CHECK(contains(markdown, "| `first.radius` |"));
  const size_t square = markdown.find("### first.shape: square");
  CHECK(markdown.find("| `first.width` |") > square);
  CHECK(markdown.find("| `first.colour` |") < square);  // with the group's other keys
}

TEST_CASE("the reference names every key under its own group") {
  BigConfig c;
  const std::string text = config_to_markdown(visitor(c));
  INFO(text);
  CHECK(contains(text, "| `steps` | int | `100` |  | Number of steps. |\n"));
  CHECK(contains(text, "| `rate` | number | `0.5` | > 0 | Rate. |\n"));
  CHECK(contains(text, "| `inner.mode` | text | `\"slow\"` | slow \\| fast | Fast \\| slow. |\n"));
  CHECK(contains(text, "| `inner.depth` | int | `1` | 1 .. 10 | Depth. |\n"));
  CHECK(contains(text, "## items[]\n"));
  CHECK(contains(text, "| `items[].depth` |"));
  // `last` stands behind the groups in the code, and in the root's table here.
  CHECK(text.find("| `last` |") < text.find("## inner"));
}

TEST_CASE("a choice is written as one of its words") {
  CHECK(parsed("speed: quick").speed == test::Speed::kQuick);
  CHECK(parsed("").speed == test::Speed::kSlow);
  CHECK(refusal("speed: quik") ==
        "run.yaml:1: speed: expected one of slow, quick, found 'quik'; did you mean 'quick'?");
  BigConfig c;
  c.speed = test::Speed::kQuick;
  CHECK(contains(config_to_yaml(visitor(c)), "speed: \"quick\"\n"));
  CHECK(contains(config_to_markdown(visitor(c)), "| `speed` | text | `\"quick\"` | slow \\| quick | Speed. |\n"));
  CHECK(choice_word(test::Speed::kSlow) == "slow");
  CHECK(choice_value<test::Speed>("quick") == test::Speed::kQuick);
  CHECK(choice_words<test::Speed>() == std::vector<std::string>{"slow", "quick"});
  CHECK_THROWS_AS(choice_value<test::Speed>("fast"), Error);
}

TEST_CASE("a struct that no file filled is held to the same ranges") {
  const auto found = [](auto change) -> std::string {
    BigConfig c;
    c.items.resize(2);
    change(c);
    try {
      check_config("run", c);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::kInput);
      return e.what();
    }
    return "";
  };
  CHECK(found([](BigConfig&) {}) == "");
  CHECK(found([](BigConfig& c) { c.rate = 0; }) == "run.rate: expected > 0, found 0");
  CHECK(contains(found([](BigConfig& c) { c.rate = std::nan(""); }), "run.rate: expected > 0, found nan"));
  CHECK(found([](BigConfig& c) { c.sizes = {1, 2}; }) == "run.sizes: expected 3 values, found 2");
  CHECK(found([](BigConfig& c) { c.sizes[1] = 0; }) == "run.sizes[1]: expected 3 values, each >= 1, found 0");
  CHECK(found([](BigConfig& c) { c.weights = {std::nan("")}; }) != "");
  CHECK(found([](BigConfig& c) { c.inner.depth = 11; }) == "run.inner.depth: expected 1 .. 10, found 11");
  CHECK(contains(found([](BigConfig& c) { c.items[1].mode = "fats"; }), "run.items[1].mode: expected one of"));
  CHECK(found([](BigConfig& c) { c.speed = test::Speed(7); }) == "run.speed: expected one of slow, quick, found '7'");
}

TEST_CASE("files: missing, a folder, too large, a good one") {
  const test::TemporaryFolder temp;
  const auto refused = [&](const std::string& path) {
    BigConfig c;
    try {
      load_config(path, {}, visitor(c));
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::kInput);
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(contains(refused(temp.path() + "/none.yaml"), "none.yaml"));
  CHECK(contains(refused(temp.path()), temp.path()));  // never taken for an empty file
  std::ofstream(temp.path() + "/large.yaml") << std::string(2 << 20, '#');
  CHECK(contains(refused(temp.path() + "/large.yaml"), "1048576 bytes"));
  CHECK(contains(refused("/dev/zero"), "1048576 bytes"));
  std::ofstream(temp.path() + "/bad.yaml") << "steps: x\n";
  CHECK(refused(temp.path() + "/bad.yaml") == temp.path() + "/bad.yaml:1: steps: expected an integer, found 'x'");
  std::ofstream(temp.path() + "/good.yaml") << "steps: 3\r\nname: windows\r\n";
  BigConfig c;
  load_config(temp.path() + "/good.yaml", {"name=x"}, visitor(c));
  CHECK(c.steps == 3);
  CHECK(c.name == "x");
  load_config("", {"steps=4"}, visitor(c));
  CHECK(c.steps == 4);
}
