// report.html: one page about a run, or about several beside each other, for any browser, offline. All that it shows
// lies inside the file: numbers, pictures and videos as far as the limits allow, style and script. It asks no network
// for anything, and nothing that captions, paths or messages hold is taken for markup.
//
// Reads the runs' folders (run_files.h) and keeps nothing between calls.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace vmoba::report {

struct ReportLimits {
  int64_t media_bytes = int64_t{24} << 20;  // of all pictures and videos inside the page, as files
  int64_t video_bytes = int64_t{4} << 20;   // of one video; larger ones are links to their files
};

// Of one run: compared in configuration with the run beside it whose metrics are the newest. Of several: their curves
// together and the keys that differ. `page_path` is where the page will lie, for links to files that are not inside.
// Throws Error(kInput) where a folder is no run.
std::string report_page(const std::vector<std::string>& run_folders, const std::string& page_path,
                        const ReportLimits& limits = {});

// Writes the page so that a reader sees the old one or the new one.
void write_report(const std::vector<std::string>& run_folders, const std::string& page_path,
                  const ReportLimits& limits = {});

}  // namespace vmoba::report
