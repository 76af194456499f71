// What readers say of a file that is something else: each kind by its own first bytes, with the cure.
#include "core/file_kind.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "core/check.h"
#include "core/config.h"
#include "core/hash.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using test::contains;
using namespace std::string_literals;

namespace {

std::string kind_of(const std::string& bytes) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  std::ofstream(path, std::ios::binary) << bytes;
  return what_is_this(path);
}

std::string padded(const std::string& bytes) {
  return bytes + std::string(600, '\x7f');
}

}  // namespace

TEST_CASE("files that came in place of weights are named with the cure") {
  struct Case {
    std::string bytes, kind, cure;
  };
  const Case cases[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer", "git lfs pull"},
      {"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML page", "log in"},
      {"\n\n <HTML lang=en>", "HTML page", "download it again"},
      {"\xef\xbb\xbf<!doctype HTML>", "HTML page", "download it again"},
      {"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML", "download it again"},
      {"Entry not found", "begins with 'Entry not found'", "download it again"},
      {"", "empty file", "get it again"},
      {std::string(9000, '\0'), "zeros", "get it again"},
      {"PK\x03\x04" + std::string(26, '\0') + padded("archive/data.pkl"), "pickle", "torch.load("},
      {"PK\x03\x04" + std::string(26, '\0') + padded("photos/1.png"), "zip archive", "unpack it"},
      {padded("\x80\x02}q\x00(X"s), "pickle", "save_file"},
      {padded("GGUF\x03\x00\x00\x00"s), "GGUF", "docs/pretrained.md"},
      {padded("\x1f\x8b\x08"s), "gzip", "unpack it"},
      {padded("\x28\xb5\x2f\xfd"s), "zstd", "unpack it"},
      {padded("\x89PNG\r\n\x1a\n"s), "PNG", ""},
      {padded("\x00\x00\x00\x20"
              "ftypisom"s),
       "MP4", ""},
      {R"({"a": 1})", "JSON", ""},
      {"\xe7\x94\xbb\xe9\x9d\xa2", "a text that begins", ""},
  };
  for (const Case& c : cases) {
    INFO(c.kind);
    const std::string found = kind_of(c.bytes);
    CHECK(contains(found, c.kind));
    CHECK(contains(found, c.cure));
  }
}

TEST_CASE("a safetensors file and unknown bytes are no other kind") {
  CHECK(kind_of("\x02\x00\x00\x00\x00\x00\x00\x00{}"s).empty());
  // A header whose length looks like a pickle's first bytes.
  CHECK(kind_of("\x80\x02\x00\x00\x00\x00\x00\x00"s + padded("{\"a\":")).empty());
  CHECK(kind_of(padded("\x01\x02\x03")).empty());
}

TEST_CASE("configurations of other tools are named, with where their values go") {
  const std::string musubi = "[general]\nresolution = [960, 544]\n\n[[datasets]]\nvideo_directory = \"/x\"\n";
  CHECK(contains(kind_of(musubi), "a data set of musubi-tuner"));
  CHECK(contains(kind_of(musubi), "data.path"));
  CHECK(contains(kind_of("# comment\nresolutions = [512]\n[[directory]]\npath = '/x'\n"),
                 "a data set of diffusion-pipe"));
  const std::string pipe = "output_dir = '/x'\n[model]\ntype = 'wan'\nckpt_path = '/y'\n[adapter]\nrank = 32\n";
  CHECK(contains(kind_of(pipe), "a configuration of diffusion-pipe"));
  CHECK(contains(kind_of("[training]\nlr = 1\n"), "TOML"));
  CHECK(contains(kind_of("[1, 2]"), "JSON"));  // no section

  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/dataset.toml";
  int64_t steps = 0;
  const auto load = [&] { load_config(path, {}, [&](ConfigVisitor& v) { v.field("steps", steps, "Steps."); }); };
  std::ofstream(path) << musubi;
  CHECK(contains(test::refusal_of(load), "found a data set of musubi-tuner"));
  std::ofstream(path) << padded("\x89PNG\r\n");
  CHECK(contains(test::refusal_of(load), "found a PNG picture"));
  std::ofstream(path) << "steps: many\n";  // YAML that is wrong keeps its line
  CHECK(contains(test::refusal_of(load), "dataset.toml:1: steps"));
}

TEST_CASE("a configuration may come out of a pipe, and a pipe without a writer ends in an error") {
  const test::TemporaryFolder folder;
  const std::string fifo = folder.path() + "/fifo";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  int64_t steps = 0;
  const auto load = [&] { load_config(fifo, {}, [&](ConfigVisitor& v) { v.field("steps", steps, "Steps."); }); };
  CHECK(contains(test::refusal_of(load), "FIFO"));
  CHECK(contains(test::refusal_of([&] { file_hash(fifo); }), "FIFO"));
  std::thread writer([&] { std::ofstream(fifo) << "steps: 12\n"; });
  load();
  writer.join();
  CHECK(steps == 12);
}

TEST_CASE("what is no file is named without waiting for it") {
  const test::TemporaryFolder folder;
  const std::string fifo = folder.path() + "/fifo", link = folder.path() + "/link";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  std::filesystem::create_symlink("../blobs/0123", link);
  CHECK(contains(what_is_this(fifo), "FIFO"));
  CHECK(contains(what_is_this(link), "'../blobs/0123', which is not there"));
  CHECK(contains(what_is_this(folder.path()), "folder"));
  CHECK(contains(what_is_this("/dev/zero"), "device"));
  CHECK(what_is_this(folder.path() + "/none") == "nothing");
}
