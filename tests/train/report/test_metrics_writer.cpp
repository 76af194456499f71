#include "train/report/metrics_writer.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "support/catch.h"
#include "support/file_size_limit.h"
#include "support/process.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using nlohmann::ordered_json;
using vmoba::train::MetricsWriter;
using vmoba::train::read_metric;

namespace {

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void spit(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

ordered_json record(int64_t step, double loss) {
  return {{"step", step}, {"loss", loss}, {"density", {{"all", 0.5}}}};
}

void append_steps(MetricsWriter& writer, int64_t first, int64_t last) {
  for (int64_t step = first; step <= last; ++step) writer.append(record(step, 1.0 / double(step)));
}

std::vector<int64_t> steps_of(const std::string& path) {
  std::vector<int64_t> steps;
  for (const auto& [step, loss] : read_metric(path, "loss")) steps.push_back(step);
  return steps;
}

}  // namespace

TEST_CASE("each line is one object, in the order of its keys, written at once") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/metrics.jsonl";
  MetricsWriter writer(path, 0);
  writer.append({{"step", 1}, {"loss", 0.5}, {"lr", 1e-5}});
  writer.append({{"step", 2}, {"loss", std::nan("")}, {"lr", 1e-5}});
  writer.append({{"step", 4}, {"loss", 0.25}, {"note", "caf\xe9"}});  // not UTF-8: replaced, never an error
  CHECK(slurp(path) ==
        "{\"step\":1,\"loss\":0.5,\"lr\":1e-05}\n{\"step\":2,\"loss\":null,\"lr\":1e-05}\n"
        "{\"step\":4,\"loss\":0.25,\"note\":\"caf\xef\xbf\xbd\"}\n");
  CHECK(read_metric(path, "loss") == std::vector<std::pair<int64_t, double>>{{1, 0.5}, {4, 0.25}});
  CHECK_THROWS_AS(writer.append(record(4, 1)), Error);
  CHECK_THROWS_AS(writer.append(record(3, 1)), Error);
}

TEST_CASE("a resumed run's file has each step once and the same bytes as one that was never interrupted") {
  const test::TemporaryFolder temp;
  const std::string whole = temp.path() + "/whole.jsonl", resumed = temp.path() + "/resumed.jsonl";
  {
    MetricsWriter writer(whole, 0);
    append_steps(writer, 1, 20);
  }
  const std::string expected = slurp(whole);
  // Cut at bytes all over the lines, as a kill could leave it, and go on from the checkpoint of step 10.
  const size_t ten_lines = [&] {
    size_t at = 0;
    for (int i = 0; i < 10; ++i) at = expected.find('\n', at) + 1;
    return at;
  }();
  for (size_t cut = ten_lines; cut <= expected.size(); cut += 11) {
    spit(resumed, expected.substr(0, cut));
    MetricsWriter writer(resumed, 10);
    append_steps(writer, 11, 20);
    REQUIRE(slurp(resumed) == expected);
  }
}

TEST_CASE("damaged and repeated lines are removed, the others kept") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/metrics.jsonl";
  const auto line = [](int64_t step) { return record(step, 1).dump() + "\n"; };
  spit(path, line(1) + line(2) + "\n" + "{\"step\":\n" + std::string(5, '\0') + "\n" + line(2) + "[3]\n" +
                 "{\"loss\":1}\n" + "{\"step\":\"x\"}\n" + line(3) + line(5) + line(4));
  MetricsWriter writer(path, 5);
  CHECK(slurp(path) == line(1) + line(2) + line(3) + line(5));
  writer.append(record(6, 1));
  CHECK(steps_of(path) == std::vector<int64_t>{1, 2, 3, 5, 6});
}

TEST_CASE("a run that starts anew empties the file; an untouched file is not rewritten") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/metrics.jsonl";
  {
    MetricsWriter writer(path, 0);
    append_steps(writer, 1, 3);
  }
  const std::string before = slurp(path);
  { MetricsWriter writer(path, 3); }
  CHECK(slurp(path) == before);
  { MetricsWriter writer(path, 0); }
  CHECK(slurp(path).empty());
}

TEST_CASE("a full disk ends no run: lines wait, the file keeps whole ones, and all come where space comes back") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/metrics.jsonl";
  std::string said;
  {
    MetricsWriter writer(path, 0);
    append_steps(writer, 1, 3);
    const std::string before = slurp(path);
    said = test::capture_stderr([&] {
      const test::FileSizeLimit limit(before.size() + 10);  // the next line fits in part
      append_steps(writer, 4, 9);
      writer.sync();
    });
    CHECK(slurp(path) == before);
    writer.append(record(10, 1));
    CHECK(steps_of(path) == std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  }
  CHECK(said.find(path) != std::string::npos);
  CHECK(said.find("too large") != std::string::npos);
  CHECK(said.find(path) == said.rfind(path));  // said once
}

TEST_CASE("lines that still wait at the end are named as lost") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/metrics.jsonl";
  // On a terminal: the limit holds for a file of captured lines as well.
  const std::string said = test::capture_terminal(200, [&] {
    const test::FileSizeLimit limit(4);
    MetricsWriter writer(path, 0);
    append_steps(writer, 1, 2);
  });
  CHECK(slurp(path).empty());
  CHECK(said.find("they are lost") != std::string::npos);
}

TEST_CASE("a folder that does not exist is an error that names the file") {
  const test::TemporaryFolder temp;
  try {
    MetricsWriter writer(temp.path() + "/missing/metrics.jsonl", 0);
    FAIL("not refused");
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("missing/metrics.jsonl") != std::string::npos);
  }
  CHECK_THROWS_AS(read_metric(temp.path() + "/none.jsonl", "loss"), Error);
}

TEST_CASE("a torn last line is passed over when reading") {
  const test::TemporaryFolder temp;
  spit(temp.path() + "/m", "{\"step\":1,\"loss\":2}\n{\"step\":2,\"lo");
  CHECK(read_metric(temp.path() + "/m", "loss") == std::vector<std::pair<int64_t, double>>{{1, 2.0}});
}
