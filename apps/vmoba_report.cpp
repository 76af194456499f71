// vmoba-report: one page about a run, or about several beside each other (docs/running.md).
#include <iostream>

#include "apps/main_guard.h"
#include "report/report.h"

int main(int argc, char** argv) {
  CLI::App app{"Writes report.html: curves, samples, data and configuration of a run, or a comparison of several."};
  std::vector<std::string> runs;
  std::string out;
  vmoba::report::ReportLimits limits;
  int64_t media_mb = limits.media_bytes >> 20;
  app.add_option("runs", runs, "Folders of runs")->required();
  app.add_option("--out", out, "The page (of one run its folder's report.html, of several report.html)");
  app.add_option("--media-mb", media_mb, "MiB of videos and pictures inside the page; the rest are links (24)")
      ->check(CLI::Range(0, 4096));
  return vmoba::apps::guarded_main(app, argc, argv, [&] {
    const std::string path = !out.empty() ? out : runs.size() == 1 ? runs.front() + "/report.html" : "report.html";
    limits.media_bytes = media_mb << 20;
    vmoba::report::write_report(runs, path, limits);
    std::cout << path << "\n";
    return 0;
  });
}
