#include "core/progress.h"

#include <chrono>
#include <cmath>
#include <vector>

#include "core/log.h"

namespace vmoba {
namespace {

constexpr double kTerminalInterval_s = 0.1;  // more often only burns a slow terminal
constexpr double kStepMemory = 0.95;         // the mean step time looks back about 20 steps

std::string duration(double seconds) {
  if (seconds < 0 || !std::isfinite(seconds)) return "?";
  const int64_t s = std::llround(std::min(seconds, 1e9));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02d}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02d}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02d}h", s / 86400, s / 3600 % 24);
}

std::string rate(double value) {
  if (value < 1e4) return fmt::format("{:.0f}", value);
  if (value < 1e6) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.2f}M", value / 1e6);
}

std::string density_text(const std::map<std::string, double>& density, bool partitions) {
  std::string text;
  const auto add = [&](const std::string& name, double value) {
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : " ", name, value);
  };
  if (partitions)
    for (const auto& [name, value] : density)
      if (name != "all") add(name, value);
  const auto all = density.find("all");
  if (all != density.end()) add("all", all->second);
  return text.empty() ? "" : "density " + text;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string line;
  for (const std::string& part : parts)
    if (!part.empty()) line += (line.empty() ? "" : " | ") + part;
  return line;
}

}  // namespace

std::string format_progress(const ProgressReport& r, double eta_s, int columns) {
  const std::string head = fmt::format("step {}/{}", r.step, r.steps);
  const std::string loss = fmt::format("loss {:.4f}", r.loss), grad = fmt::format("grad {:.3g}", r.grad_norm);
  const std::string learning = fmt::format("{} | lr {:.2e} | {}", loss, r.lr, grad);
  const std::string speed = fmt::format("{} tokens/s", rate(r.tokens_per_s));
  const std::string mfu = r.mfu > 0 ? fmt::format("MFU {:.0f}%", 100 * r.mfu) : "";
  const std::string data = fmt::format("data {:.0f}%", r.step_s > 0 ? 100.0 * r.data_wait_s / r.step_s : 0.0);
  const std::string memory = fmt::format("mem {:.1f} GiB", double(r.memory_bytes) / double(int64_t{1} << 30));
  const std::string eta = "ETA " + duration(eta_s);
  const std::vector<std::vector<std::string>> forms = {
      {head, learning, speed, mfu, density_text(r.density, true), data, memory, eta},
      {head, learning, speed, mfu, density_text(r.density, false), data, memory, eta},
      {head, learning, speed, density_text(r.density, false), eta},
      {head, learning, speed, eta},
      {head, loss, grad, speed, eta},
      {head, loss, speed, eta},
      {head, loss, eta}};
  for (const auto& form : forms) {
    const std::string line = joined(form);
    if (columns <= 0 || line.size() <= size_t(columns)) return line;
  }
  return joined(forms.back()).substr(0, size_t(columns));
}

Progress::Progress(int columns, double plain_interval_s) : columns_(columns), plain_interval_s_(plain_interval_s) {}

Progress::~Progress() {
  if (!last_line_.empty()) set_status_line("");
}

double Progress::remaining_s(const ProgressReport& report) {
  step_s_ = kStepMemory * step_s_ + (1 - kStepMemory) * report.step_s;
  step_weight_ = kStepMemory * step_weight_ + (1 - kStepMemory);
  return step_s_ / step_weight_ * double(report.steps - report.step);
}

void Progress::update(const ProgressReport& report, double now_s) {
  const double eta_s = remaining_s(report);
  const bool last = report.step >= report.steps;
  const double interval_s = columns_ > 0 ? kTerminalInterval_s : plain_interval_s_;
  if (!last && now_s - shown_at_s_ < interval_s) return;
  shown_at_s_ = now_s;
  if (columns_ <= 0) return log_message(LogLevel::kInfo, format_progress(report, eta_s, 0));
  // One column stays free: a full line would make some terminals wrap, and then "\r" rewrites its second half only.
  last_line_ = format_progress(report, eta_s, columns_ - 1);
  set_status_line(last_line_);
}

void Progress::update(const ProgressReport& report) {
  update(report, std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

void Progress::finish() {
  if (last_line_.empty()) return;
  set_status_line("");
  log_message(LogLevel::kInfo, last_line_);
  last_line_.clear();
}

}  // namespace vmoba
