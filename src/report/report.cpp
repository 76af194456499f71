#include "report/report.h"

#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <filesystem>

#include "core/check.h"
#include "core/file.h"
#include "core/hash.h"
#include "report/html.h"
#include "report/page/assets.h"
#include "report/run_files.h"
#include "report/sections.h"

namespace vmoba::report {
namespace {

namespace fs = std::filesystem;

std::string section(const std::string& id, const std::string& title, const std::string& content) {
  return fmt::format("<section id=\"{}\">\n<h2>{}</h2>\n{}</section>\n", id, title, content);
}

// What `content` says of each run, under its name where there are several.
template <typename Content>
std::string of_each(const std::vector<RunFiles>& runs, const Content& content) {
  std::string out;
  for (const RunFiles& run : runs)
    out += (runs.size() > 1 ? fmt::format("<h3>{}</h3>\n", html_text(run.name)) : "") + content(run);
  return out;
}

std::string utc_text(double unix_s) {
  const auto seconds = std::time_t(unix_s);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &parts);
  return text;
}

std::string title_of(const std::vector<RunFiles>& runs) {
  std::string out;
  for (const RunFiles& run : runs) out += (out.empty() ? "" : ", ") + run.name;
  return out;
}

std::string header_html(const std::vector<RunFiles>& runs) {
  std::string out = fmt::format(
      "<header>\n<div class=\"head\"><h1>{}</h1><button id=\"theme\" title=\"Light or dark\" aria-label=\"Light or "
      "dark\">&#9680;</button></div>\n",
      html_text(title_of(runs)));
  out += of_each(runs, [](const RunFiles& run) {
    const double time = run.last("time");
    const std::string model = run.value("model.architecture"), rank = run.value("lora.rank");
    std::string line = model.empty() ? "" : html_text(model);
    if (!rank.empty() && rank != "0") line += ", LoRA of rank " + html_text(rank);
    if (time > 0) line += (line.empty() ? "" : ", ") + ("last step " + utc_text(time));
    return fmt::format("<p class=\"faint\">{}</p>\n{}", line, tiles_html(run));
  });
  return out +
         "<nav><a href=\"#curves\">Curves</a><a href=\"#samples\">Samples</a><a href=\"#data\">Data</a><a "
         "href=\"#dropped\">Dropped</a><a href=\"#configuration\">Configuration</a></nav>\n</header>\n";
}

const char* const kControls =
    "<div class=\"controls\"><label>over <select id=\"axis\"><option value=\"step\">steps</option><option "
    "value=\"samples\">samples</option><option value=\"gpu_s\">GPU seconds</option></select></label><label>smooth "
    "<input type=\"range\" id=\"smooth\" min=\"0\" max=\"30\" value=\"3\"></label><label><input type=\"checkbox\" "
    "id=\"log\"> logarithmic</label><button id=\"zoomed\" hidden>whole range</button><span class=\"faint\">Drag to "
    "zoom "
    "in, double click for the whole range.</span></div>\n<noscript><p class=\"warn\">The curves need "
    "JavaScript.</p></noscript>\n<div class=\"charts\" id=\"charts\"></div>\n";

std::string configuration_section(const std::vector<RunFiles>& runs) {
  if (runs.size() > 1)
    return "<h3>Keys that differ</h3>\n" + differences_html(runs) + of_each(runs, configuration_html);
  std::string out;
  if (const std::string beside = run_beside(runs.front().folder); !beside.empty()) {
    const std::vector<RunFiles> both = {runs.front(), read_run_configuration(beside)};
    out = fmt::format("<h3>What differs from {}</h3>\n", html_text(both.back().name)) + differences_html(both);
  }
  return out + configuration_html(runs.front());
}

// From the page's folder to the run's.
std::string way_to(const RunFiles& run, const std::string& page_path) {
  const fs::path page = fs::weakly_canonical(page_path).parent_path();
  const std::string way = fs::weakly_canonical(run.folder).lexically_relative(page).generic_string();
  return way.empty() || way == "." ? "" : way + "/";
}

nlohmann::json chart_data(const std::vector<RunFiles>& runs) {
  nlohmann::json out = {{"runs", nlohmann::json::array()}};
  for (const RunFiles& run : runs) {
    out["runs"].push_back(history_json(run.history));
    out["runs"].back()["name"] = run.name;
  }
  return out;
}

}  // namespace

std::string report_page(const std::vector<std::string>& run_folders, const std::string& page_path,
                        const ReportLimits& limits) {
  VMOBA_CHECK_INPUT(!run_folders.empty(), "expected the folder of at least one run, found none");
  std::vector<RunFiles> runs;
  for (const std::string& folder : run_folders) runs.push_back(read_run(folder));
  const std::vector<std::string> names = names_of_folders(run_folders);
  for (size_t i = 0; i < runs.size(); ++i) runs[i].name = names[i];
  MediaBudget budget{limits.media_bytes, limits.video_bytes};
  const std::string data = of_each(runs, [&](const RunFiles& run) { return data_html(run, budget); });
  const std::string samples =
      of_each(runs, [&](const RunFiles& run) { return samples_html(run, way_to(run, page_path), budget); });
  std::string body = header_html(runs) + "<main>\n" + section("curves", "Curves", kControls) +
                     section("samples", "Samples", samples) + section("data", "Training data", data) +
                     section("dropped", "Dropped", of_each(runs, dropped_html)) +
                     section("configuration", "Configuration", configuration_section(runs)) + "</main>\n";
  body += "<footer>vmoba report. Everything that it shows lies inside this file.</footer>\n";
  body += fmt::format("<script type=\"application/json\" id=\"numbers\">{}</script>\n", script_json(chart_data(runs)));
  // Script and style that carry the hash of all else are this program's: no text inside can know it.
  const std::string nonce = hash_text(content_hash(body));
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-"
      "Policy\" content=\"default-src 'none'; img-src data:; media-src data:; style-src 'nonce-{0}'; script-src "
      "'nonce-{0}'\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{1}</title>\n"
      "<style nonce=\"{0}\">\n{2}</style>\n</head>\n<body>\n{3}<script "
      "nonce=\"{0}\">\n{4}</script>\n</body>\n</html>\n",
      nonce, html_text(title_of(runs)), kStyle, body, kScript);
}

void write_report(const std::vector<std::string>& run_folders, const std::string& page_path,
                  const ReportLimits& limits) {
  write_file_atomically(page_path, report_page(run_folders, page_path, limits));
}

}  // namespace vmoba::report
