#include "train/report/metrics_writer.h"

#include <filesystem>
#include <functional>
#include <optional>

#include "core/check.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"

namespace vmoba::train {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{4} << 30;
constexpr std::chrono::seconds kSyncInterval{1};

// The object of one line, if it is one and names a step.
std::optional<nlohmann::json> parse_line(std::string_view line) {
  std::optional<nlohmann::json> record = try_parse_json(line);
  if (!record || !record->is_object()) return std::nullopt;
  const auto step = record->find("step");
  if (step == record->end() || !step->is_number_integer()) return std::nullopt;
  return record;
}

// Calls `visit(line with its newline)` for each whole line; returns what follows the last newline.
std::string_view for_each_line(std::string_view text, const std::function<void(std::string_view)>& visit) {
  for (size_t end; (end = text.find('\n')) != std::string_view::npos; text.remove_prefix(end + 1))
    visit(text.substr(0, end + 1));
  return text;
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& path, int64_t steps_done) {
  std::string kept;
  if (std::filesystem::exists(path)) {
    const std::string text = read_file(path, kMaxFileBytes, "the run's metrics");
    int64_t damaged = 0;
    const std::string_view torn = for_each_line(text, [&](std::string_view line) {
      const auto record = parse_line(line);
      const int64_t step = record ? record->at("step").get<int64_t>() : 0;
      if (step <= last_step_) ++damaged;
      if (step <= last_step_ || step > steps_done) return;
      kept += line;
      last_step_ = step;
    });
    if (damaged > 0) log_warning("{}: removed {} damaged or repeated lines", path, damaged);
    const bool changed = kept.size() != text.size() || !torn.empty();
    if (changed) write_file_atomically(path, kept);
  }
  file_.emplace(path, 0, int64_t(kept.size()));
  sync();
}

void MetricsWriter::append(const nlohmann::ordered_json& record) {
  const int64_t step = record.at("step").get<int64_t>();
  VMOBA_CHECK(step > last_step_, "expected metrics of a step above {}, found step {} again", last_step_, step);
  file_->append(record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  last_step_ = step;
  if (std::chrono::steady_clock::now() - synced_at_ >= kSyncInterval) sync();
}

void MetricsWriter::sync() {
  file_->sync();
  synced_at_ = std::chrono::steady_clock::now();
}

std::vector<std::pair<int64_t, double>> read_metric(const std::string& path, const std::string& name) {
  std::vector<std::pair<int64_t, double>> values;
  for (const auto& pair : read_metrics(path, {"step", name}, nullptr)) values.emplace_back(int64_t(pair[0]), pair[1]);
  return values;
}

std::vector<std::vector<double>> read_metrics(const std::string& path, const std::vector<std::string>& names,
                                              std::set<std::string>* known) {
  std::vector<std::vector<double>> values;
  const std::string text = read_file(path, kMaxFileBytes, "a run's metrics");
  for_each_line(text, [&](std::string_view line) {
    const auto record = parse_line(line);
    if (!record) return;
    if (known)
      for (const auto& [name, value] : record->items())
        if (value.is_number()) known->insert(name);
    std::vector<double> found;
    for (const std::string& name : names) {
      const auto value = record->find(name);
      if (value == record->end() || !value->is_number()) return;
      found.push_back(value->get<double>());
    }
    values.push_back(std::move(found));
  });
  return values;
}

}  // namespace vmoba::train
