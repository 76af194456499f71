// Event files as the real TensorBoard package reads them (read_events.py, in the tests' venv).
#include "train/report/tensorboard_writer.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "support/catch.h"
#include "support/file_size_limit.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba;
using vmoba::train::TensorboardWriter;

namespace {

nlohmann::json read_with_tensorboard(const std::string& folder) {
  const std::string command = test::python() + " " + test::source_dir() + "/tests/train/report/read_events.py '" +
                              folder + "' 2>'" + folder + "/../errors'";
  FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string text;
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, got);
  const int status = ::pclose(pipe);
  std::ifstream errors(folder + "/../errors");
  INFO(command << "\n" << std::string(std::istreambuf_iterator<char>(errors), {}));
  REQUIRE(status == 0);  // missing venv: ./scripts/setup.sh --tests
  return nlohmann::json::parse(text);
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes.push_back(char(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

// A red and a blue pixel (made with Python's zlib).
const char* kPngHex =
    "89504e470d0a1a0a0000000d49484452000000020000000108020000007b40e8dd0000000d49444154789c63f8cf0004ff01070001ffe2239e"
    "590000000049454e44ae426082";

}  // namespace

TEST_CASE("CRC-32C gives the vectors of RFC 3720") {
  using train::crc32c;
  CHECK(crc32c("123456789") == 0xE3069283u);
  CHECK(crc32c("") == 0u);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAu);
  CHECK(crc32c(std::string(32, '\xff')) == 0x62A8AB43u);
  std::string ascending, descending;
  for (int i = 0; i < 32; ++i) {
    ascending.push_back(char(i));
    descending.push_back(char(31 - i));
  }
  CHECK(crc32c(ascending) == 0x46DD794Eu);
  CHECK(crc32c(descending) == 0x113FDB5Cu);
}

TEST_CASE("TensorBoard reads scalars and pictures, also of a resumed run") {
  const test::TemporaryFolder temp;
  const std::string folder = temp.path() + "/run/tensorboard";
  const std::string png = from_hex(kPngHex);
  {
    TensorboardWriter first(folder, 0);
    for (int64_t step = 1; step <= 10; ++step)
      first.scalars(step, {{"train/loss", 1.0 / double(step)}, {"density/all", 0.25}});
    first.image(8, "sample/0", 1, 2, png);
  }
  {  // Went on from the checkpoint of step 5: what the first file says about 6 to 10 must not show.
    TensorboardWriter second(folder, 5);
    second.scalars(6, {{"train/loss", 600.5}, {"density/all", 0.5}});
    second.scalars(7, {{"train/loss", std::nan("")}, {"density/all", std::numeric_limits<double>::infinity()}});
    second.scalars(int64_t{1} << 40, {{"train/loss", -2.0}});
    second.image(7, "sample/0", 1, 2, png);
  }
  const nlohmann::json seen = read_with_tensorboard(folder);
  const auto loss = seen["scalars"]["train/loss"];
  REQUIRE(loss.size() == 8);
  for (int step = 1; step <= 5; ++step) {
    CHECK(loss[step - 1][0] == step);
    CHECK(std::stod(loss[step - 1][1].get<std::string>()) == Approx(1.0 / step).epsilon(1e-6));
  }
  CHECK(loss[5] == nlohmann::json({6, "600.5"}));
  CHECK(loss[6] == nlohmann::json({7, "nan"}));
  CHECK(loss[7] == nlohmann::json({int64_t{1} << 40, "-2.0"}));
  CHECK(seen["scalars"]["density/all"].size() == 7);
  CHECK(seen["scalars"]["density/all"][6] == nlohmann::json({7, "inf"}));
  const nlohmann::json pixels = {{255, 0, 0}, {0, 0, 255}};
  CHECK(seen["images"]["sample/0"] == nlohmann::json::array({{7, 1, 2, pixels}}));
  // Each record's checksums held: version + 10 + picture; version + restart + 3 + picture.
  CHECK(seen["raw_events"] == nlohmann::json({12, 6}));
  REQUIRE(seen["files"].size() == 2);
  for (const std::string name : seen["files"]) {
    CHECK(name.starts_with("events.out.tfevents."));
    CHECK(name.ends_with(".vmoba"));
  }
}

TEST_CASE("TensorBoard's text plugin reads texts") {
  const test::TemporaryFolder temp;
  const std::string folder = temp.path() + "/run/tensorboard";
  TensorboardWriter(folder, 0).text(3, "samples/0/prompt", "a gold mirror, \xC3\xA9\n\nin the rain");
  CHECK(read_with_tensorboard(folder)["texts"]["samples/0/prompt"] ==
        nlohmann::json::array({{3, "a gold mirror, \xC3\xA9\n\nin the rain"}}));
}

TEST_CASE("a file sorts behind earlier ones even when the clock went back") {
  const test::TemporaryFolder temp;
  std::ofstream(temp.path() + "/events.out.tfevents.9999999998.elsewhere.vmoba") << "";
  std::ofstream(temp.path() + "/events.out.tfevents.notes") << "";
  const TensorboardWriter writer(temp.path(), 0);
  CHECK(writer.path().find("/events.out.tfevents.9999999999.") != std::string::npos);
}

TEST_CASE("an unwritable folder is an error; events wait for a full disk, and the file keeps whole ones") {
  const test::TemporaryFolder temp;
  std::ofstream(temp.path() + "/file") << "x";
  CHECK_THROWS_AS(TensorboardWriter(temp.path() + "/file/folder", 0), Error);

  TensorboardWriter writer(temp.path() + "/events", 0);
  {
    const test::FileSizeLimit limit(1000);
    for (int64_t step = 1; step < 100; ++step) writer.scalars(step, {{"train/loss", 1.0}});
  }
  const auto events = [&] { return read_with_tensorboard(temp.path() + "/events").at("raw_events").at(0).get<int>(); };
  CHECK(events() > 2);
  CHECK(events() < 90);
  writer.scalars(100, {{"train/loss", 1.0}});
  CHECK(events() == 101);  // the version and every step
}
