// The page about a run: its structure, what it holds, and that nothing of a run's texts becomes markup. How it looks is
// to be seen in a browser.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "report/report.h"
#include "report/run_files.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba::report;
using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

constexpr const char* kEvil = "<script>alert('x')</script>\" onerror=\"alert(2)";

void write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

// A run's folder with something of everything.
std::string make_run(const std::string& folder, const std::string& lr = "1.0e-4") {
  std::string metrics;
  for (int step = 1; step <= 4; ++step)
    metrics += "{\"step\": " + std::to_string(step) + ", \"loss\": 0.5, \"lr\": " + lr +
               ", \"step_s\": 2, \"gpu_s\": " + std::to_string(2 * step) + ", \"samples\": " + std::to_string(step) +
               ", \"time\": 1700000000" + (step == 4 ? ", \"val_loss\": 0.75" : "") + "}\n";
  write(folder + "/metrics.jsonl", metrics);
  write(folder + "/config.resolved.yaml",
        "run:\n  dir: x\ntrain:\n  steps: 10\n  optimizer:\n    lr: " + lr + "\nmodel:\n  architecture: wan\n");
  const nlohmann::json plan = {
      {"clips", {{{"path", "a.mp4"}}, {{"path", "b.mp4"}, {"held_out", true}}}},
      {"buckets", {{{"frames", 5}, {"height", 32}, {"width", 64}, {"tokens", 16}, {"clips", 2}}}},
      {"dropped", {{{"path", "<i>c</i>.mp4"}, {"reason", "too short & small"}}}},
      {"missing_captions", 3},
      {"notes", {"keys that are not used: <b>"}}};
  write(folder + "/clip_plan.json", plan.dump());
  for (const char* name : {"step-000002-0", "step-000004-0", "step-000004-1"}) {
    write(folder + "/samples/" + name + ".mp4", std::string("video ") + name);
    write(folder + "/samples/" + name + ".txt", std::string(name).ends_with('1') ? "a red lift\n" : kEvil);
  }
  write(folder + "/samples/step-000004-1.mp4.partial", "no video");
  const nlohmann::json sheet = {
      {"clips",
       {{{"file", "000.jpg"}, {"caption", kEvil}, {"source", "a.mp4"}, {"frames", 5}, {"height", 32}, {"width", 64}},
        {{"file", "../../secret"}, {"caption", "elsewhere"}}}}};
  write(folder + "/contact_sheet/index.json", sheet.dump());
  write(folder + "/contact_sheet/000.jpg", "picture");
  return folder;
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
  return found;
}

nlohmann::json data_of(const std::string& page) {
  const std::string begin = "<script type=\"application/json\" id=\"numbers\">";
  const size_t from = page.find(begin) + begin.size();
  return nlohmann::json::parse(page.substr(from, page.find("</script>", from) - from));
}

}  // namespace

TEST_CASE("the page of a run holds all that the run shows, and asks nobody for anything") {
  const TemporaryFolder temp;
  const std::string run = make_run(temp.path() + "/run_a");
  write_report({run}, run + "/report.html");
  const std::string page = read_text(run + "/report.html");
  CHECK(page.starts_with("<!DOCTYPE html>"));
  for (const char* id : {"curves", "samples", "data", "dropped", "configuration"})
    CHECK(contains(page, "<section id=\"" + std::string(id) + "\">"));
  const nlohmann::json data = data_of(page);
  REQUIRE(data["runs"].size() == 1);
  CHECK(data["runs"][0]["name"] == "run_a");
  CHECK(data["runs"][0]["y"]["loss"] == nlohmann::json({0.5, 0.5, 0.5, 0.5}));
  CHECK(data["runs"][0]["marks"]["val_loss"]["y"] == nlohmann::json({0.75}));
  CHECK(contains(page, "<b>4 / 10</b><span>step</span>"));
  CHECK(contains(page, "<b>12 s</b><span>left at this speed</span>"));
  CHECK(count(page, "src=\"data:video/mp4;base64,") == 3);
  CHECK(contains(page, "data:video/mp4;base64,dmlkZW8gc3RlcC0wMDAwMDQtMQ==\""));  // "video step-000004-1"
  CHECK(contains(page, "<blockquote>a red lift</blockquote>"));
  CHECK(contains(page, "src=\"data:image/jpeg;base64,cGljdHVyZQ==\""));
  CHECK_FALSE(contains(page, "elsewhere"));
  CHECK(contains(page, "Training clips: 1 in buckets: 1. Held out: 1. Dropped files or lines: 1."));
  CHECK(contains(page, "clips without a caption: 3"));
  CHECK(contains(page, "<td>&lt;i&gt;c&lt;/i&gt;.mp4</td><td>too short &amp; small</td>"));
  CHECK(contains(page, "<td>train.optimizer.lr</td><td>1.0e-4</td>"));
  // Nothing from outside the file.
  static const std::regex outside(R"((src|href)=\"(https?:|//|file:))");
  CHECK_FALSE(std::regex_search(page, outside));
  CHECK_FALSE(contains(page, "@import"));
  CHECK(contains(page, "default-src 'none'"));
}

TEST_CASE("texts of a run never become markup") {
  const TemporaryFolder temp;
  const std::string run = make_run(temp.path() + "/run<script>alert(3)<&");
  const std::string page = report_page({run}, run + "/report.html");
  CHECK(count(page, "<script") == 2);  // the numbers and the page's own
  CHECK(count(page, "</script") == 2);
  static const std::regex nonce("<script nonce=\"([0-9a-f]{16})\">");
  std::smatch own;
  REQUIRE(std::regex_search(page, own, nonce));
  CHECK(contains(page, "script-src 'nonce-" + own[1].str() + "'"));
  CHECK_FALSE(contains(page, "onerror=\""));
  CHECK_FALSE(contains(page, "<b>\n"));
  CHECK(contains(page, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot; onerror=&quot;alert(2)"));
  CHECK(data_of(page)["runs"][0]["name"] == "run<script>alert(3)<&");
}

TEST_CASE("videos beyond the limits are links from where the page lies; each prompt's newest comes first") {
  const TemporaryFolder temp;
  const std::string run = make_run(temp.path() + "/a run");
  ReportLimits limits;
  limits.media_bytes = 45;  // two videos of 19 bytes, and the picture
  std::string page = report_page({run}, temp.path() + "/pages/all.html", limits);
  CHECK(count(page, "data:video/mp4") == 2);
  CHECK(count(page, "data:image/jpeg") == 1);
  CHECK(contains(page, "<a href=\"../a run/samples/step-000002-0.mp4\">step 2</a>"));
  limits.video_bytes = 10;
  page = report_page({run}, run + "/report.html", limits);
  CHECK(count(page, "data:video/mp4") == 0);
  CHECK(contains(page, "<a href=\"samples/step-000004-1.mp4\">step 4</a>"));
}

TEST_CASE("a run is compared with the run beside it; several runs with each other") {
  const TemporaryFolder temp;
  const std::string a = make_run(temp.path() + "/a"), b = make_run(temp.path() + "/b", "2.0e-4");
  fs::create_directories(temp.path() + "/no_run");
  write(temp.path() + "/empty/config.resolved.yaml", "run: {dir: y}\n");
  CHECK(run_beside(a) == fs::weakly_canonical(b).string());
  std::string page = report_page({a}, a + "/report.html");
  CHECK(contains(page, "What differs from b"));
  CHECK(contains(page, "<tr><td>train.optimizer.lr</td><td>1.0e-4</td><td>2.0e-4</td></tr>"));
  CHECK_FALSE(contains(page, "<tr><td>run.dir</td><td>x</td><td>"));

  page = report_page({a, b, temp.path() + "/empty"}, temp.path() + "/report.html");
  CHECK(data_of(page)["runs"].size() == 3);
  CHECK(data_of(page)["runs"][2]["x"]["step"].empty());
  CHECK(contains(page, "<th>key</th><th>a</th><th>b</th><th>empty</th>"));
  CHECK(contains(page, "<td>train.optimizer.lr</td><td>1.0e-4</td><td>2.0e-4</td><td>(not there)</td>"));
  CHECK_FALSE(contains(page, "<td>model.architecture</td><td>wan</td><td>wan</td><td>wan</td>"));
}

TEST_CASE("numbers that are not there are left out") {
  const TemporaryFolder temp;
  const std::string run = temp.path() + "/run";
  write(run + "/metrics.jsonl", "{\"step\": 3, \"loss\": null, \"gpu_s\": null, \"time\": null, \"val_loss\": null}\n");
  const std::string page = report_page({run}, run + "/report.html");
  CHECK(contains(page, "<b>3 / ?</b><span>step</span>"));
  for (const char* word : {"nan", "device time so far", "last step", "held-out loss</span>"}) {
    INFO(word);
    CHECK_FALSE(contains(page.substr(page.find("<body>"), page.find("<main>") - page.find("<body>")), word));
  }
}

TEST_CASE("runs of one name are told apart; what is no run is refused") {
  const TemporaryFolder temp;
  make_run(temp.path() + "/x/run");
  make_run(temp.path() + "/y/run");
  const std::string page = report_page({temp.path() + "/x/run/", temp.path() + "/y/run"}, temp.path() + "/report.html");
  CHECK(data_of(page)["runs"][0]["name"] == "x/run");
  CHECK(data_of(page)["runs"][1]["name"] == "y/run");
  CHECK(contains(refusal_of([&] { report_page({temp.path() + "/none"}, "p"); }), "found no folder"));
  CHECK(
      contains(refusal_of([&] { report_page({temp.path()}, "p"); }), "expected metrics.jsonl or config.resolved.yaml"));
  CHECK(contains(refusal_of([] { report_page({}, "p"); }), "at least one run"));
}
