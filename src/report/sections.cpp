#include "report/sections.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "core/file.h"
#include "report/html.h"

namespace vmoba::report {
namespace {

constexpr size_t kMostDrops = 500;
constexpr size_t kMostLinks = 200;
constexpr double kMiB = double(1 << 20), kGiB = double(1 << 30);

std::string bytes_text(int64_t bytes) {
  return double(bytes) >= kGiB ? fmt::format("{:.2f} GiB", double(bytes) / kGiB)
                               : fmt::format("{:.1f} MiB", double(bytes) / kMiB);
}

std::string duration_text(double seconds) {
  const auto minutes = int64_t(seconds / 60);
  if (minutes < 1) return fmt::format("{:.0f} s", seconds);
  if (minutes < 60) return fmt::format("{} min", minutes);
  return minutes < 48 * 60 ? fmt::format("{} h {:02d} min", minutes / 60, minutes % 60)
                           : fmt::format("{:.1f} days", double(minutes) / 1440);
}

std::string tile(const std::string& value, const std::string& label) {
  return fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", html_text(value), html_text(label));
}

// The mean of the last values that are there.
double recent_mean(const std::vector<double>& values) {
  constexpr size_t kMost = 20;
  double sum = 0, count = 0;
  for (size_t i = values.size() > kMost ? values.size() - kMost : 0; i < values.size(); ++i)
    if (std::isfinite(values[i])) sum += values[i], count += 1;
  return count > 0 ? sum / count : std::nan("");
}

double recent(const RunFiles& run, const std::string& name) {
  const auto found = run.history.y.find(name);
  return found == run.history.y.end() ? std::nan("") : recent_mean(found->second);
}

std::string video_html(const RunFiles& run, const SampleVideo& video) {
  const std::string bytes = read_file(run.folder + "/" + video.file, video.bytes + 1, "a sample video");
  const bool gif = video.file.ends_with(".gif");
  const std::string uri = data_uri(gif                             ? "image/gif"
                                   : video.file.ends_with(".webm") ? "video/webm"
                                                                   : "video/mp4",
                                   bytes);
  const std::string element =
      gif ? fmt::format("<img alt=\"\" src=\"{}\">", uri)
          : fmt::format("<video controls loop muted playsinline preload=\"metadata\" src=\"{}\"></video>", uri);
  return fmt::format("<figure>{}<figcaption>step {}</figcaption></figure>\n", element, video.step);
}

// In the order in which videos get their place inside the page: each prompt's newest, each prompt's first, the others
// from the newest on.
std::vector<size_t> by_interest(const std::vector<SampleVideo>& samples) {
  std::map<int64_t, std::vector<size_t>> by_prompt;
  for (size_t i = 0; i < samples.size(); ++i) by_prompt[samples[i].prompt_number].push_back(i);
  std::vector<size_t> out;
  for (const auto& [prompt, places] : by_prompt) out.push_back(places.back());
  for (const auto& [prompt, places] : by_prompt)
    if (places.size() > 1) out.push_back(places.front());
  std::vector<size_t> rest;
  for (const auto& [prompt, places] : by_prompt)
    for (size_t k = 1; k + 1 < places.size(); ++k) rest.push_back(places[k]);
  std::sort(rest.begin(), rest.end(), std::greater<>());
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

std::string prompt_of(const RunFiles& run, const std::vector<size_t>& places) {
  for (size_t i = places.size(); i-- > 0;)
    if (!run.samples[places[i]].prompt.empty()) return run.samples[places[i]].prompt;
  return "";
}

std::string link_html(const std::string& up, const SampleVideo& video) {
  return fmt::format("<a href=\"{}\">step {}</a> <span class=\"faint\">({})</span>", html_text(up + video.file),
                     video.step, bytes_text(video.bytes));
}

// Samples of one prompt: those `inside` as videos, the others as links.
std::string prompt_html(const RunFiles& run, const std::vector<size_t>& places, const std::set<size_t>& inside,
                        const std::string& up) {
  const std::string prompt = prompt_of(run, places);
  std::string out = fmt::format("<blockquote>{}</blockquote>\n<div class=\"media\">\n",
                                prompt.empty() ? "<span class=\"faint\">(empty prompt)</span>" : html_text(prompt));
  std::vector<std::string> links;
  for (size_t i = places.size(); i-- > 0;) {
    if (inside.contains(places[i]))
      out += video_html(run, run.samples[places[i]]);
    else
      links.push_back(link_html(up, run.samples[places[i]]));
  }
  out += "</div>\n";
  if (links.empty()) return out;
  out += "<p class=\"faint\">Files that are not inside this page: ";
  for (size_t i = 0; i < std::min(links.size(), kMostLinks); ++i) out += (i ? ", " : "") + links[i];
  return out + "</p>\n";
}

std::string row(const std::vector<std::string>& cells, const char* element = "td") {
  std::string out = "<tr>";
  for (const std::string& cell : cells) out += fmt::format("<{0}>{1}</{0}>", element, html_text(cell));
  return out + "</tr>\n";
}

std::string buckets_html(const RunFiles& run) {
  if (run.buckets.empty()) return "";
  std::string out = "<div class=\"wide-table\"><table><thead>" +
                    row({"frames", "width", "height", "tokens", "clips"}, "th") + "</thead><tbody>\n";
  for (const DataBucket& b : run.buckets)
    out += row({std::to_string(b.frames), std::to_string(b.width), std::to_string(b.height), std::to_string(b.tokens),
                std::to_string(b.clips)});
  return out + "</tbody></table></div>\n";
}

}  // namespace

std::string tiles_html(const RunFiles& run) {
  const MetricsHistory& history = run.history;
  if (history.lines == 0) return "<p class=\"faint\">No step is done yet.</p>\n";
  const auto step = int64_t(run.last("step"));
  const std::string steps = run.value("train.steps");
  std::string out = "<div class=\"tiles\">\n" + tile(fmt::format("{} / {}", step, steps.empty() ? "?" : steps), "step");
  const auto add = [&](double value, const std::string& label, const auto& text) {
    if (std::isfinite(value)) out += tile(text(value), label);
  };
  const auto plain = [](double value) { return fmt::format("{:.4g}", value); };
  const auto percent = [](double value) { return fmt::format("{:.1f} %", 100 * value); };
  add(recent(run, "loss"), "loss, recent mean", plain);
  if (const auto held_out = history.marks.find("val_loss"); held_out != history.marks.end()) {
    add(held_out->second.y.back(), "held-out loss", plain);
    add(*std::min_element(held_out->second.y.begin(), held_out->second.y.end()), "best held-out loss", plain);
  }
  const double step_s = recent(run, "step_s");
  add(step_s, "step time", [](double value) { return fmt::format("{:.3g} s", value); });
  add(recent(run, "tokens_per_s"), "tokens per second", [](double value) { return fmt::format("{:.0f}", value); });
  add(recent(run, "mfu"), "MFU", percent);
  add(recent(run, "memory_bytes"), "memory", [](double value) { return bytes_text(int64_t(value)); });
  add(recent(run, "density"), "density of attention", percent);
  add(recent(run, "data_wait_s") / step_s, "wait for data", percent);
  const int64_t left = steps.empty() ? 0 : std::max<int64_t>(0, std::atoll(steps.c_str()) - step);
  if (left > 0) add(double(left) * step_s, "left at this speed", duration_text);
  add(run.last("gpu_s"), "device time so far", duration_text);
  add(run.last("failed_clips"), "clips that failed", plain);
  return out + "</div>\n";
}

std::string samples_html(const RunFiles& run, const std::string& up, MediaBudget& budget) {
  if (run.samples.empty())
    return "<p class=\"faint\">None yet: <code>train.validate_every</code> and the group <code>sample</code> "
           "say when and what.</p>\n";
  std::set<size_t> inside;
  for (const size_t place : by_interest(run.samples)) {
    const int64_t bytes = run.samples[place].bytes;
    if (bytes > budget.video_bytes || bytes > budget.left_bytes) continue;
    budget.left_bytes -= bytes;
    inside.insert(place);
  }
  std::map<int64_t, std::vector<size_t>> by_prompt;
  for (size_t i = 0; i < run.samples.size(); ++i) by_prompt[run.samples[i].prompt_number].push_back(i);
  std::string out;
  for (const auto& [prompt, places] : by_prompt) out += prompt_html(run, places, inside, up);
  return out;
}

std::string data_html(const RunFiles& run, MediaBudget& budget) {
  std::string out = fmt::format("<p>Training clips: {} in buckets: {}. Held out: {}. Dropped files or lines: {}.</p>\n",
                                run.clips, run.buckets.size(), run.held_out_clips, run.dropped.size());
  for (const std::string& note : run.data_notes) out += fmt::format("<p class=\"warn\">{}</p>\n", html_text(note));
  out += buckets_html(run);
  if (run.contact_sheet.empty()) return out;
  out +=
      "<p class=\"faint\">First, middle and last frame of clips as they are trained on: resized, cropped, mirrored."
      "</p>\n<div class=\"media strips\">\n";
  for (const TrainedClip& clip : run.contact_sheet) {
    if (clip.bytes > budget.left_bytes) continue;
    budget.left_bytes -= clip.bytes;
    const std::string bytes = read_file(run.folder + "/" + clip.file, clip.bytes + 1, "a picture of the contact sheet");
    out += fmt::format(
        "<figure><img alt=\"\" loading=\"lazy\" src=\"{}\"><figcaption><div class=\"caption\" title=\"{}\">{}</div>"
        "<div class=\"faint\">{}, {}</div></figcaption></figure>\n",
        data_uri("image/jpeg", bytes), html_text(clip.caption),
        clip.caption.empty() ? "<span class=\"faint\">(no caption)</span>" : html_text(clip.caption),
        html_text(std::filesystem::path(clip.source).filename().string()), html_text(clip.bucket));
  }
  return out + "</div>\n";
}

std::string dropped_html(const RunFiles& run) {
  if (run.dropped.empty()) return "<p class=\"faint\">None.</p>\n";
  std::map<std::string, int64_t> reasons;
  for (const DroppedFile& dropped : run.dropped) reasons[dropped.reason] += 1;
  std::string out = fmt::format(
      "<details{}><summary>{} files or lines, {} different reasons</summary>\n<div class=\"wide-table\"><table><thead>",
      run.dropped.size() <= 20 ? " open" : "", run.dropped.size(), reasons.size());
  out += row({"file or line", "reason"}, "th") + "</thead><tbody>\n";
  for (size_t i = 0; i < std::min(run.dropped.size(), kMostDrops); ++i)
    out += row({run.dropped[i].path, run.dropped[i].reason});
  out += "</tbody></table></div>\n";
  if (run.dropped.size() > kMostDrops)
    out += fmt::format("<p class=\"faint\">and {} more in clip_plan.json</p>\n", run.dropped.size() - kMostDrops);
  return out + "</details>\n";
}

std::string differences_html(const std::vector<RunFiles>& runs) {
  std::set<std::string> keys;
  for (const RunFiles& run : runs)
    for (const auto& [key, value] : run.configuration) keys.insert(key);
  keys.erase("run.dir");
  std::vector<std::string> head = {"key"};
  for (const RunFiles& run : runs) head.push_back(run.name);
  std::string rows;
  for (const std::string& key : keys) {
    std::vector<std::string> cells = {key};
    std::set<std::string> values;
    for (const RunFiles& run : runs) {
      const auto found = run.configuration.find(key);
      cells.push_back(found == run.configuration.end() ? "(not there)" : found->second);
      values.insert(cells.back());
    }
    if (values.size() > 1) rows += row(cells);
  }
  if (rows.empty()) return "<p class=\"faint\">No key differs.</p>\n";
  return "<div class=\"wide-table\"><table id=\"differing-keys\"><thead>" + row(head, "th") + "</thead><tbody>\n" +
         rows + "</tbody></table></div>\n";
}

std::string configuration_html(const RunFiles& run) {
  if (run.configuration.empty()) return "<p class=\"faint\">No config.resolved.yaml.</p>\n";
  std::string out = fmt::format(
      "<details><summary>All {} keys</summary>\n<p><input type=\"search\" id=\"filter\" placeholder=\"part of a key or "
      "value\" aria-label=\"filter\"></p>\n<div class=\"wide-table\"><table id=\"all-keys\"><tbody>\n",
      run.configuration.size());
  for (const auto& [key, value] : run.configuration) out += row({key, value});
  return out + "</tbody></table></div></details>\n";
}

}  // namespace vmoba::report
