#include "data/manifest.h"

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::data;
using vmoba::test::TemporaryFolder;
using vmoba::test::write_bytes;
namespace fs = std::filesystem;

namespace {

Manifest read(const std::string& path, const std::string& format = "auto") {
  DataConfig config;
  config.path = path;
  config.format = format;
  return read_manifest(config);
}

std::string reason_of(const Manifest& manifest, const std::string& path) {
  for (const DroppedClip& dropped : manifest.dropped)
    if (dropped.path == path) return dropped.reason;
  return "";
}

}  // namespace

TEST_CASE("A folder: same-stem captions, any case of the extensions, subfolders, byte order") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  for (const char* name :
       {"/b.MP4", "/a.mp4", "/deep/er/c.MoV", "/picture.JPG", "/deep/no_caption.webm", "/.hidden.mp4", "/.cache/x.mp4"})
    write_bytes(root + name, "x");
  write_bytes(root + "/a.txt", "\xEF\xBB\xBF  caption a \n");
  write_bytes(root + "/b.TXT", "caption b");
  write_bytes(root + "/deep/er/c.json", "{\"caption\": \"caption c\"}");
  write_bytes(root + "/picture.txt", "a picture");
  write_bytes(root + "/orphan.txt", "no video");
  write_bytes(root + "/notes.xyz", "?");
  write_bytes(root + "/README.md", "?");
  const Manifest out = read(root);
  std::vector<std::string> got;
  for (const ManifestEntry& entry : out.entries)
    got.push_back(fs::relative(entry.path, root).string() + "|" + entry.caption);
  CHECK(got == std::vector<std::string>{"a.mp4|caption a", "b.MP4|caption b", "deep/er/c.MoV|caption c",
                                        "deep/no_caption.webm|", "picture.JPG|a picture"});
  CHECK(out.dropped.size() == 2);
  CHECK(reason_of(out, root + "/orphan.txt").find("without a video") != std::string::npos);
  CHECK(reason_of(out, root + "/notes.xyz").find("extension") != std::string::npos);
}

TEST_CASE("A caption that cannot be read drops its file with the reason") {
  const TemporaryFolder folder;
  write_bytes(folder.path() + "/a.mp4", "x");
  write_bytes(folder.path() + "/a.txt", "caf\xE9");
  write_bytes(folder.path() + "/b.mp4", "x");
  write_bytes(folder.path() + "/b.json", "{");
  const Manifest out = read(folder.path());
  CHECK(out.entries.empty());
  CHECK(reason_of(out, folder.path() + "/a.mp4").find("UTF-8") != std::string::npos);
  CHECK(reason_of(out, folder.path() + "/b.mp4").find("b.json:1") != std::string::npos);
}

TEST_CASE("Links to folders are followed once, so that loops end") {
  const TemporaryFolder folder;
  write_bytes(folder.path() + "/data/a.mp4", "x");
  fs::create_directory_symlink(folder.path() + "/data", folder.path() + "/data/loop");
  fs::create_directory(folder.path() + "/set");
  fs::create_directory_symlink(folder.path() + "/data", folder.path() + "/set/linked");
  const Manifest out = read(folder.path() + "/set");
  REQUIRE(out.entries.size() == 1);
  CHECK(out.entries[0].path == folder.path() + "/set/linked/a.mp4");
}

TEST_CASE("Manifests are found in their folder, and paths beside them or under videos/") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  write_bytes(root + "/videos/one.mp4", "x");
  write_bytes(root + "/two.mp4", "x");
  write_bytes(root + "/metadata.csv",
              "video,prompt\none.mp4,first\ntwo.mp4,second\n/absolute/three.mp4,third\nmissing.mp4,fourth\nbroken\n");
  for (const std::string& path : {root, root + "/metadata.csv"}) {
    const Manifest out = read(path);
    REQUIRE(out.entries.size() == 4);
    CHECK(out.entries[0].path == root + "/videos/one.mp4");
    CHECK(out.entries[0].caption == "first");
    CHECK(out.entries[0].origin == "metadata.csv:2");
    CHECK(out.entries[1].path == root + "/two.mp4");
    CHECK(out.entries[2].path == "/absolute/three.mp4");
    CHECK(out.entries[3].path == root + "/missing.mp4");
    REQUIRE(out.dropped.size() == 1);
    CHECK(out.dropped[0].path == root + "/metadata.csv:6");
  }
  CHECK(read(root, "folder").entries.size() == 2);
}

TEST_CASE("Each manifest format through its usual file name") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  write_bytes(root + "/fv/videos2caption.json", "[{\"path\": \"a.mp4\", \"cap\": [\"one\", \"two\"], \"fps\": 24}]");
  write_bytes(root + "/dp/captions.json", "{\"a.mp4\": [\"one\"]}");
  write_bytes(root + "/nm/meta.json", "[{\"file_name\": \"a.mp4\", \"caption\": \"one\"}]");
  write_bytes(root + "/ds/metadata.jsonl", "{\"video\": \"a.mp4\", \"prompt\": \"one\"}\n");
  write_bytes(root + "/ft/videos.txt", "a.mp4\n");
  write_bytes(root + "/ft/prompts.txt", "one\n");
  for (const char* tool : {"fv", "dp", "nm", "ds", "ft"}) {
    INFO(tool);
    const Manifest out = read(root + "/" + tool);
    REQUIRE(out.entries.size() == 1);
    CHECK(out.entries[0].path == root + "/" + tool + "/a.mp4");
    CHECK(out.entries[0].caption == "one");
  }
}

TEST_CASE("Captions beside a file: .txt, .caption, .json, and behind the whole name") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  for (const char* name : {"/a.mp4", "/b.mp4", "/c.mp4", "/d.mp4"}) write_bytes(root + name, "x");
  write_bytes(root + "/a.caption", "of .caption");
  write_bytes(root + "/b.txt", "of .txt");
  write_bytes(root + "/b.caption", "not taken");
  write_bytes(root + "/c.mp4.txt", "behind the name");
  write_bytes(root + "/d.mp4.json", "{\"caption\": \"of .json\"}");
  write_bytes(root + "/orphan.caption", "no video");
  const Manifest out = read(root);
  std::vector<std::string> captions;
  for (const ManifestEntry& entry : out.entries) captions.push_back(entry.caption);
  CHECK(captions == std::vector<std::string>{"of .caption", "of .txt", "behind the name", "of .json"});
  REQUIRE(out.dropped.size() == 1);
  CHECK(reason_of(out, root + "/orphan.caption").find("without a video") != std::string::npos);
  CHECK(read(root + "/a.mp4").entries.at(0).caption == "of .caption");
}

TEST_CASE("A caption that serves two files, one without a caption in it, and a second manifest are said") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  for (const char* name : {"/a.mp4", "/a.jpg", "/b.mp4", "/c.mp4"}) write_bytes(root + name, "x");
  write_bytes(root + "/a.txt", "of the video, and of its preview picture");
  write_bytes(root + "/b.json", "{\"description\": \"under another key\"}");
  write_bytes(root + "/c.json", "{\"caption\": \"of c\"}");
  const Manifest out = read(root);
  REQUIRE(out.notes.size() == 2);
  CHECK(out.notes[0].find("1 captions serve several files of one name, the first " + root +
                          "/a.txt for a.jpg and a.mp4") == 0);
  CHECK(out.notes[1].find("1 .json files beside media hold no caption, the first " + root + "/b.json") == 0);
  CHECK(out.notes[1].find("data.caption_column") != std::string::npos);

  const TemporaryFolder two;
  write_bytes(two.path() + "/a.mp4", "x");
  write_bytes(two.path() + "/metadata.csv", "video,prompt\na.mp4,one\n");
  write_bytes(two.path() + "/captions.json", "{\"a.mp4\": \"other\"}");
  const Manifest first = read(two.path());
  CHECK(first.entries.at(0).caption == "one");
  REQUIRE(first.notes.size() == 1);
  CHECK(first.notes[0].find("metadata.csv is read and not captions.json") != std::string::npos);
}

TEST_CASE("Media that the manifest of a folder does not name are counted and listed") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  for (const char* name : {"/a.mp4", "/b.mp4", "/videos/c.mp4", "/videos/d.MOV"}) write_bytes(root + name, "x");
  write_bytes(root + "/b.txt", "own caption");
  write_bytes(root + "/captions.json", "{\"a.mp4\": [\"one\"], \"c.mp4\": \"three\"}");
  const Manifest out = read(root);
  CHECK(out.entries.size() == 2);
  REQUIRE(out.dropped.size() == 2);
  CHECK(reason_of(out, root + "/b.mp4") == "not named by captions.json");
  CHECK(reason_of(out, root + "/videos/d.MOV") == "not named by captions.json");
  REQUIRE(out.notes.size() == 1);
  CHECK(out.notes[0].find("2 media files") == 0);
  CHECK(out.notes[0].find("data.format=folder") != std::string::npos);
  // Named by its path, the manifest alone counts.
  CHECK(read(root + "/captions.json").dropped.empty());

  const Manifest given = read(vmoba::test::fixtures() + "/data/manifest/captions_json_partial");
  CHECK(given.entries.size() == 1);
  CHECK(given.dropped.size() == 1);
}

TEST_CASE("A caption file that only looks like a manifest does not take its folder over") {
  const TemporaryFolder folder;
  const std::string root = folder.path();
  for (const char* name : {"/meta.mp4", "/a.mp4", "/captions.mov", "/videos.mp4", "/prompt.mp4"})
    write_bytes(root + name, "x");
  write_bytes(root + "/meta.json", "{\"caption\": \"of meta\"}");
  write_bytes(root + "/captions.json", "{\"caption\": \"of captions\"}");
  write_bytes(root + "/videos.txt", "of videos");
  write_bytes(root + "/prompt.txt", "of prompt");
  write_bytes(root + "/metadata.json", "{\"name\": \"my set\", \"license\": \"free\"}");
  const Manifest out = read(root);
  std::vector<std::string> captions;
  for (const ManifestEntry& entry : out.entries) captions.push_back(entry.caption);
  CHECK(captions == std::vector<std::string>{"", "of captions", "of meta", "of prompt", "of videos"});
  // A broken manifest is not passed over.
  write_bytes(root + "/metadata.json", "{\"a.mp4\": ");
  CHECK_THROWS_AS(read(root), vmoba::Error);
}

TEST_CASE("Keys that are not used are named once") {
  const TemporaryFolder folder;
  write_bytes(folder.path() + "/metadata.csv", "video,prompt,aesthetic score,fps\na.mp4,x,5.1,24\nb.mp4,y,5.2,24\n");
  const Manifest out = read(folder.path() + "/metadata.csv");
  REQUIRE(out.entries.size() == 2);
  CHECK(out.entries[1].cut.fps == 24);
  CHECK(out.notes == std::vector<std::string>{"metadata.csv: keys that are not used: aesthetic score"});
}

TEST_CASE("Paths written on Windows, and .tsv") {
  const TemporaryFolder folder;
  write_bytes(folder.path() + "/sub/a.mp4", "x");
  write_bytes(folder.path() + "/metadata.tsv", "file_name\tcaption\nsub\\a.mp4\tone\n");
  const Manifest out = read(folder.path());
  REQUIRE(out.entries.size() == 1);
  CHECK(out.entries[0].path == folder.path() + "/sub/a.mp4");
  CHECK(out.entries[0].caption == "one");
  CHECK(out.dropped.empty());
}

TEST_CASE("A single media file is a data set") {
  const TemporaryFolder folder;
  write_bytes(folder.path() + "/a.mp4", "x");
  write_bytes(folder.path() + "/a.txt", "alone");
  const Manifest out = read(folder.path() + "/a.mp4");
  REQUIRE(out.entries.size() == 1);
  CHECK(out.entries[0].caption == "alone");
}

TEST_CASE("A file that is neither media nor manifest is refused, other tools' data sets by name") {
  const TemporaryFolder folder;
  DataConfig config;
  config.path = folder.path() + "/dataset.toml";
  write_bytes(config.path, "[[datasets]]\nvideo_directory = '/x'\n");
  const std::string text = vmoba::test::refusal_of([&] { read_manifest(config); });
  CHECK(text.find("musubi-tuner") != std::string::npos);
  CHECK(text.find("data.sets") != std::string::npos);
}

TEST_CASE("What is not there is an input error that names it") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(read(""), vmoba::Error);
  CHECK_THROWS_AS(read(folder.path() + "/none"), vmoba::Error);
  CHECK_THROWS_AS(read(folder.path(), "csv"), vmoba::Error);
  write_bytes(folder.path() + "/videos.txt", "a.mp4\n");
  CHECK_THROWS_AS(read(folder.path() + "/videos.txt"), vmoba::Error);
}
