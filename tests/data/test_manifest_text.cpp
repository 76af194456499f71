#include "data/manifest_text.h"

#include <array>
#include <functional>

#include "core/check.h"
#include "core/random.h"
#include "support/catch.h"
#include "support/messages.h"

using namespace vmoba::data;
using vmoba::test::refusal_of;

namespace {

struct Pair {
  std::string media, caption;
  bool operator==(const Pair& o) const { return media == o.media && caption == o.caption; }
};

std::vector<Pair> pairs(const ManifestText& text) {
  std::vector<Pair> out;
  for (const ManifestRecord& record : text.records) out.push_back({record.media, record.caption});
  return out;
}

}  // namespace

TEST_CASE("JSONL takes the keys of every listed tool") {
  const auto out = parse_jsonl(
      "\xEF\xBB\xBF{\"video_path\": \"a.mp4\", \"caption\": \"musubi\"}\r\n"
      "\n"
      "{\"image_path\": \"b.png\", \"caption\": \"picture\"}\n"
      "{\"video\": \"c.mp4\", \"prompt\": \"diffsynth\"}\n"
      "{\"file_path\": \"d.mp4\", \"text\": \"videox\", \"type\": \"video\"}\n"
      "{\"path\": \"e.mp4\", \"cap\": [\"first\", \"second\"]}\n"
      "{\"file_name\": \"f.mp4\", \"caption\": \" trimmed \"}\n"
      "{\"path\": \"g.mp4\"}\n"
      "{\"path\": \"h.mp4\", \"cap\": []}\n"
      "{\"path\": \"i.mp4\", \"caption\": null, \"text\": \"next name\"}",
      {});
  CHECK(out.problems.empty());
  CHECK(pairs(out) == std::vector<Pair>{{"a.mp4", "musubi"},
                                        {"b.png", "picture"},
                                        {"c.mp4", "diffsynth"},
                                        {"d.mp4", "videox"},
                                        {"e.mp4", "first"},
                                        {"f.mp4", "trimmed"},
                                        {"g.mp4", ""},
                                        {"h.mp4", ""},
                                        {"i.mp4", "next name"}});
  CHECK(out.records[0].line == 1);
  CHECK(out.records[1].line == 3);
  CHECK(out.records[5].has_caption);
  CHECK(!out.records[6].has_caption);
  CHECK(!out.records[7].has_caption);
}

TEST_CASE("Every JSONL line that cannot be used is a problem with its line") {
  const auto out = parse_jsonl(
      "{\"path\": \"a\"\n[1]\n{\"caption\": \"x\"}\n{\"path\": 3}\n{\"path\": \"\"}\n{\"path\": \"a\", \"caption\": "
      "5}\n{\"path\": \"a\\u0000b\"}\n{\"path\": \"ok\"}\n",
      {});
  CHECK(pairs(out) == std::vector<Pair>{{"ok", ""}});
  REQUIRE(out.problems.size() == 7);
  for (int64_t i = 0; i < 7; ++i) CHECK(out.problems[static_cast<size_t>(i)].line == i + 1);
  CHECK(out.problems[2].message.find("data.video_column") != std::string::npos);
  CHECK(out.problems[5].message.find("caption") != std::string::npos);
}

TEST_CASE("Named columns are taken instead of the usual ones") {
  const auto out = parse_jsonl(
      "{\"path\": \"wrong\", \"clip\": \"right\", \"words\": \"mine\", \"caption\": \"theirs\"}", {"clip", "words"});
  CHECK(pairs(out) == std::vector<Pair>{{"right", "mine"}});
}

TEST_CASE("JSON lists, data lists and caption objects") {
  const auto list =
      parse_json("[\n {\"path\": \"a\", \"cap\": \"x, [y] {z} \\\"q\\\"\"},\n\n {\"path\": \"b\"}, {\"nothing\": 1}\n]",
                 "m.json", {});
  CHECK(pairs(list) == std::vector<Pair>{{"a", "x, [y] {z} \"q\""}, {"b", ""}});
  CHECK(list.records[0].line == 2);
  CHECK(list.records[1].line == 4);
  REQUIRE(list.problems.size() == 1);
  CHECK(list.problems[0].line == 4);

  const auto data =
      parse_json("{\"version\": [1],\n\"data\": [\n{\"video_path\": \"a\", \"caption\": \"c\"}]}", "m.json", {});
  CHECK(pairs(data) == std::vector<Pair>{{"a", "c"}});
  CHECK(data.records[0].line == 3);

  const auto object = parse_json("{\"a.mp4\": [\"one\", \"two\"],\n\"b.mp4\": \"three\"}", "captions.json", {});
  CHECK(pairs(object) == std::vector<Pair>{{"a.mp4", "one"}, {"b.mp4", "three"}});
  CHECK(object.records[1].line == 2);
}

TEST_CASE("Text that is no JSON document names file and line") {
  CHECK(refusal_of([] { parse_json("[\n{\"path\": }\n]", "x/m.json", {}); }).find("x/m.json:2") != std::string::npos);
  CHECK(refusal_of([] { parse_json("3", "m.json", {}); }).find("m.json") != std::string::npos);
  CHECK(refusal_of([] { parse_json("", "m.json", {}); }).find("m.json:1") != std::string::npos);
}

TEST_CASE("CSV columns are found by name, and rows checked") {
  const auto out =
      parse_csv("id,video,prompt\n1,a.mp4,\"one, two\"\n2,b.mp4\n3,,c\n4,d.mp4,\"x\"y\n5,e.mp4,\n", "m.csv", {});
  CHECK(pairs(out) == std::vector<Pair>{{"a.mp4", "one, two"}, {"e.mp4", ""}});
  REQUIRE(out.problems.size() == 3);
  CHECK(out.problems[0].line == 3);
  CHECK(out.problems[1].line == 4);
  CHECK(out.problems[2].line == 5);
  CHECK(refusal_of([] { parse_csv("id,words\n1,2\n", "m.csv", {}); }).find("data.video_column") != std::string::npos);
  CHECK(refusal_of([] {
          parse_csv("path,words\n1,2\n", "m.csv", {"", "text"});
        }).find("data.caption_column") != std::string::npos);
  CHECK(refusal_of([] { parse_csv("", "m.csv", {}); }).find("m.csv:1") != std::string::npos);
}

TEST_CASE("Line-aligned lists") {
  const auto out = parse_lines("a.mp4\r\nb.mp4\n\n", "first\n\"\"\n", "videos.txt", "prompt.txt");
  CHECK(pairs(out) == std::vector<Pair>{{"a.mp4", "first"}, {"b.mp4", ""}});
  const std::string message = refusal_of([] { parse_lines("a\nb\nc\n", "x\ny\n", "videos.txt", "prompt.txt"); });
  CHECK(message.find("2") != std::string::npos);
  CHECK(message.find("3") != std::string::npos);
  const auto gap = parse_lines("a\n\nc\n", "x\ny\nz\n", "videos.txt", "prompt.txt");
  CHECK(gap.records.size() == 2);
  REQUIRE(gap.problems.size() == 1);
  CHECK(gap.problems[0].line == 2);
}

TEST_CASE("Captions are UTF-8 of bounded size") {
  CHECK(caption_problem("plain").empty());
  CHECK(caption_problem("\xC3\xA9 \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x8E\xA5").empty());
  CHECK(!caption_problem("caf\xE9").empty());
  CHECK(!caption_problem("cut \xE6\x97").empty());
  CHECK(!caption_problem("\xC0\x80").empty());
  CHECK(caption_problem(std::string(kMaxCaption_bytes, 'x')).empty());
  CHECK(!caption_problem(std::string(kMaxCaption_bytes + 1, 'x')).empty());
  const auto latin = parse_csv("path,text\na,caf\xE9\nb,ok\n", "m.csv", {});
  CHECK(pairs(latin) == std::vector<Pair>{{"b", "ok"}});
  REQUIRE(latin.problems.size() == 1);
  CHECK(latin.problems[0].message.find("iconv") != std::string::npos);
}

TEST_CASE("NaN, as Python writes it, is a missing value") {
  for (const std::string value : {"NaN", "Infinity", "-Infinity", "null", "\"NaN\"", "\"nan\"", "\"\""}) {
    INFO(value);
    const auto out = parse_jsonl("{\"path\": \"NaN.mp4\", \"caption\": " + value + "}\n", {});
    CHECK(pairs(out) == std::vector<Pair>{{"NaN.mp4", ""}});
    CHECK(out.problems.empty());
    CHECK(pairs(parse_json("[{\"path\": \"a \\\" NaN\", \"caption\": " + value + "}]", "m.json", {})) ==
          std::vector<Pair>{{"a \" NaN", ""}});
  }
  CHECK(pairs(parse_csv("path,caption\na,nan\nb,NaN\nc,nan bread\n", "m.csv", {})) ==
        std::vector<Pair>{{"a", ""}, {"b", ""}, {"c", "nan bread"}});
}

TEST_CASE("A list in a .jsonl, lines in a .json, an object of objects") {
  CHECK(pairs(parse_jsonl("[\n{\"path\": \"a\", \"cap\": \"x\"}\n]\n", {})) == std::vector<Pair>{{"a", "x"}});
  CHECK(pairs(parse_json("{\"path\": \"a\"}\n{\"path\": \"b\"}\n", "m.json", {})) ==
        std::vector<Pair>{{"a", ""}, {"b", ""}});
  const auto nested = parse_json("{\"a.mp4\": {\"caption\": \"x\", \"tags\": 1, \"repeats\": 2}}", "m.json", {});
  CHECK(pairs(nested) == std::vector<Pair>{{"a.mp4", "x"}});
  CHECK(nested.records[0].cut.repeats == 2);
  CHECK(nested.unused_keys == std::set<std::string>{"tags"});
}

TEST_CASE("Rows between tabs and semicolons") {
  const auto tabs =
      parse_csv("video\tcaption\na.mp4\tone, \"two\"\nb.mp4\t\"A cat\" sits\nc.mp4\t\"x\ty\"\n", "m.tsv", {}, '\t');
  CHECK(pairs(tabs) == std::vector<Pair>{{"a.mp4", "one, \"two\""}, {"b.mp4", "\"A cat\" sits"}, {"c.mp4", "x\ty"}});
  CHECK(tabs.problems.empty());
  CHECK(pairs(parse_csv("path\tcaption\na\tx, y\n", "m.csv", {})) == std::vector<Pair>{{"a", "x, y"}});
  CHECK(pairs(parse_csv("path;caption\na;x, y\n", "m.csv", {})) == std::vector<Pair>{{"a", "x, y"}});
  CHECK(pairs(parse_csv("video\tcaption\na\t\"open\nb\tnext\n", "m.tsv", {}, '\t')) ==
        std::vector<Pair>{{"a", "\"open"}, {"b", "next"}});
}

TEST_CASE("What a line says of time, picture, rate and repeats") {
  const auto cut = [](const std::string& text) {
    const auto out = parse_jsonl("{\"path\": \"a\", " + text + "}", {});
    INFO(text << (out.problems.empty() ? "" : out.problems[0].message));
    REQUIRE(out.records.size() == 1);
    for (const std::string& key : out.unused_keys) CHECK((key == "duration" || key == "num_frames"));
    return out.records[0].cut;
  };
  const auto seconds = [](double start_s, double end_s) {
    MediaCut out;
    out.start_s = start_s;
    out.end_s = end_s;
    return out;
  };
  CHECK(cut("\"start\": 1.5, \"end\": 4") == seconds(1.5, 4));
  CHECK(cut("\"start_time\": \"0:01:02.250\", \"end_time\": \"01:03\"") == seconds(62.25, 63));
  CHECK(cut("\"timestamp\": [\"0:00:01,5\", \"0:00:02\"]") == seconds(1.5, 2));
  CHECK(cut("\"timestamp\": \"['0:00:01', '0:00:02']\"") == seconds(1, 2));
  CHECK(cut("\"end_s\": 3") == seconds(-1, 3));
  MediaCut frames;
  frames.start_frame = 32;
  frames.end_frame = 65;
  CHECK(cut("\"cut\": [32, 65]") == frames);
  CHECK(cut("\"frame_idx\": \"32:65\"") == frames);
  CHECK(cut("\"start_frame\": \"32\", \"end_frame\": 65") == frames);
  CHECK(cut("\"start_frame\": 32, \"num_frames\": 33") == frames);
  CHECK(cut("\"start\": 1.5, \"duration\": 2.5") == seconds(1.5, 4));
  CHECK(cut("\"start\": 1.5, \"end\": 3, \"duration\": 1.5, \"num_frames\": 24, \"fps\": 0").end_s == 3);
  MediaCut crop;
  crop.crop = {0, 96, 8, 112};
  CHECK(cut("\"crop\": [0, 96, 8, 112]") == crop);
  MediaCut rate;
  rate.fps = 12.5;
  rate.repeats = 3;
  CHECK(cut("\"fps\": 12.5, \"num_repeats\": 3") == rate);
  CHECK(cut("\"source_fps\": \"12.5\", \"repeats\": \"3\"") == rate);
  CHECK(cut("\"fps\": \"25/2\", \"num_repeats\": 3.0") == rate);  // as ffprobe writes rates
  CHECK(cut("\"start\": null, \"cut\": [], \"crop\": NaN, \"fps\": \"\"") == MediaCut{});

  const auto rows =
      parse_csv("path,caption,start,end,crop,score\na,x,1,2.5,\"[0, 8, 0, 8]\",0.1\nb,y,,,,\n", "m.csv", {});
  REQUIRE(rows.records.size() == 2);
  CHECK(rows.records[0].cut.start_s == 1);
  CHECK(rows.records[0].cut.end_s == 2.5);
  CHECK(rows.records[0].cut.crop == std::array<int64_t, 4>{0, 8, 0, 8});
  CHECK(rows.records[1].cut == MediaCut{});
  CHECK(rows.unused_keys == std::set<std::string>{"score"});
}

TEST_CASE("A part that makes no sense is a problem with its key") {
  const std::vector<std::pair<std::string, std::string>> bad = {{"\"start\": -1", "'start'"},
                                                                {"\"start\": \"soon\"", "'start'"},
                                                                {"\"start\": 3, \"end\": 2", "end after the start"},
                                                                {"\"cut\": [65, 32]", "'cut'"},
                                                                {"\"cut\": 5", "'cut'"},
                                                                {"\"cut\": [1, 2, 3]", "'cut'"},
                                                                {"\"crop\": [10, 5, 0, 8]", "'crop'"},
                                                                {"\"crop\": [0, 5]", "'crop'"},
                                                                {"\"crop\": [0.1, 0.9, 0, 1]", "shares of the"},
                                                                {"\"crop\": [0, 1, 0, 1]", "shares of the"},
                                                                {"\"fps\": -5", "'fps'"},
                                                                {"\"repeats\": 0", "from 1 to 1e+06 under 'repeats'"},
                                                                {"\"repeats\": 2.5", "'repeats'"},
                                                                {"\"start_frame\": 1.5", "'start_frame'"},
                                                                {"\"fps\": \"24/0\"", "'fps'"},
                                                                {"\"fps\": \"24/1/1\"", "'fps'"},
                                                                {"\"start_frame\": 9, \"end_frame\": 9", "end after"}};
  for (const auto& [text, word] : bad) {
    INFO(text);
    const auto out = parse_jsonl("{\"path\": \"a\", " + text + "}", {});
    REQUIRE(out.problems.size() == 1);
    CHECK(out.problems[0].message.find(word) != std::string::npos);
  }
}

TEST_CASE("What a line says of the whole file, without a start, cuts nothing") {
  const auto out = parse_jsonl("{\"path\": \"a\", \"duration\": 2, \"num_frames\": 48}", {});
  REQUIRE(out.records.size() == 1);
  CHECK(out.records[0].cut == MediaCut{});
  CHECK(out.unused_keys == std::set<std::string>{"duration", "num_frames"});
}

TEST_CASE("Deep nesting and long lines are problems, not crashes") {
  const std::string deep(200'000, '[');
  const auto out = parse_jsonl(
      deep + "\n{\"path\": \"" + std::string(kMaxManifestLine_bytes, 'a') + "\"}\n{\"path\": \"ok\"}\n", {});
  CHECK(out.problems.size() == 2);
  CHECK(out.records.size() == 1);
  CHECK_THROWS_AS(parse_json(deep + std::string(deep.size(), ']'), "m.json", {}), vmoba::Error);
  // Values of a line are copied and printed level by level.
  const auto cut = parse_jsonl("{\"path\": \"a\", \"cut\": " + deep + std::string(deep.size(), ']') + "}", {});
  CHECK(cut.problems.size() == 1);
}

namespace {

// One random change to a text: a byte flipped, inserted, removed, doubled stretch, cut.
void mutate(std::string& text, vmoba::RandomStream& random) {
  const size_t at = random.below(text.size() + 1);
  switch (random.below(6)) {
    case 0:
      if (at < text.size()) text[at] = static_cast<char>(random.below(256));
      break;
    case 1:
      text.insert(at, 1, "\"\\,{}[]:\n\r\0x"[random.below(12)]);
      break;
    case 2:
      if (at < text.size()) text.erase(at, 1 + random.below(8));
      break;
    case 3:
      text.insert(at, text.substr(random.below(text.size() + 1), random.below(32)));
      break;
    case 4:
      text.resize(at);
      break;
    default:
      if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << random.below(8)));
      break;
  }
}

// Every mutation gives records and problems that obey the contract, or an input error.
void fuzz_manifests(int64_t count) {
  const std::vector<std::string> seeds = {
      "{\"path\": \"a.mp4\", \"cap\": [\"one\", \"two\"]}\n{\"video\": \"b\\u00e9.mp4\", \"prompt\": \"x\"}\n",
      "[\n{\"file_path\": \"a\", \"text\": \"t\"},\n{\"path\": \"b\", \"cap\": null}]\n",
      "{\"data\": [{\"path\": \"a\", \"caption\": \"q\"}]}",
      "{\"a.mp4\": [\"one\"], \"b.mp4\": \"two\"}",
      "{\"a.mp4\": {\"caption\": NaN}}",
      "[{\"path\": \"a\", \"cut\": [0, 33], \"crop\": [0, 9, 0, 9], \"fps\": 16, \"start\": \"0:01\"}]",
      "video\tcaption\tstart\na.mp4\t\"x\" y\t1.5\n",
      "id,video,prompt\n1,a.mp4,\"one, \"\"two\"\"\"\n2,b.mp4,\"x\ny\"\n",
      "a.mp4\nb.mp4\nc.mp4\n"};
  const std::vector<std::function<ManifestText(const std::string&)>> parsers = {
      [](const std::string& text) { return parse_jsonl(text, {}); },
      [](const std::string& text) { return parse_json(text, "m.json", {}); },
      [](const std::string& text) { return parse_csv(text, "m.csv", {}); },
      [](const std::string& text) { return parse_lines(text, "x\ny\nz\n", "videos.txt", "prompt.txt"); }};
  int64_t accepted = 0, refused = 0;
  for (int64_t i = 0; i < count; ++i) {
    vmoba::RandomStream random(11, "fuzz.manifest", static_cast<uint64_t>(i));
    std::string text = seeds[random.below(seeds.size())];
    for (uint64_t changes = 1 + random.below(4); changes > 0; --changes) mutate(text, random);
    try {
      const ManifestText out = parsers[static_cast<size_t>(i) % parsers.size()](text);
      bool sound = true;
      for (const ManifestRecord& record : out.records)
        sound = sound && !record.media.empty() && record.media.find('\0') == std::string::npos &&
                caption_problem(record.caption).empty() && record.line >= 1;
      for (const ManifestProblem& problem : out.problems)
        sound = sound && problem.line >= 1 && !problem.message.empty();
      if (!sound) FAIL("broken contract on mutation " << i << ": " << text);
      ++accepted;
    } catch (const vmoba::Error& error) {
      if (error.kind() != vmoba::ErrorKind::kInput) FAIL("not an input error on mutation " << i);
      ++refused;
    }
  }
  CHECK(accepted > count / 10);
  CHECK(refused > count / 100);
}

}  // namespace

TEST_CASE("100,000 mutated manifests give records, problems or an input error") {
  fuzz_manifests(100'000);
}
TEST_CASE("1,000,000 mutated manifests", "[fuzz]") {
  fuzz_manifests(1'000'000);
}
