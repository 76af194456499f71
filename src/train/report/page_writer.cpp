#include "train/report/page_writer.h"

#include <chrono>
#include <utility>

#include "core/log.h"
#include "report/report.h"
#include "train/report/contact_sheet.h"
#include "train/report/samples_grid.h"

namespace vmoba::train {
namespace {

constexpr std::chrono::seconds kSheetPatience{5};  // at the end of a run that was shorter than its contact sheet took

}  // namespace

PageWriter::PageWriter(const RootConfig& config, const data::ClipPlan& plan) : config_(config), plan_(plan) {
  thread_ = std::thread([this] { work(); });
}

PageWriter::~PageWriter() {
  cancel_sheet_ = true;
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void PageWriter::work() {
  const std::string& dir = config_.run.dir;
  without_ending_the_run([&] { write_contact_sheet(dir + "/contact_sheet", config_, plan_, cancel_sheet_); });
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return wanted_ || over_; });
    if (over_) return;
    wanted_ = false;
    busy_ = true;
    const bool grid = std::exchange(grid_wanted_, false);
    lock.unlock();
    if (grid) without_ending_the_run([&] { write_samples_grid(dir, config_.sample); });
    without_ending_the_run([&] { report::write_report({dir}, dir + "/report.html"); });
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

void PageWriter::ask(bool grid) {
  const std::lock_guard lock(mutex_);
  wanted_ = true;
  grid_wanted_ |= grid;
  changed_.notify_all();
}

void PageWriter::on_checkpoint(int64_t, const std::string&) {
  ask(/*grid=*/false);
}

void PageWriter::on_validation(int64_t, const std::vector<ValidationVideo>&) {
  ask(/*grid=*/true);
}

void PageWriter::on_end() {
  ask(/*grid=*/false);
  std::unique_lock lock(mutex_);
  const auto idle = [this] { return !wanted_ && !busy_; };
  if (!changed_.wait_for(lock, kSheetPatience, idle)) {
    cancel_sheet_ = true;
    changed_.wait(lock, idle);
  }
  log_info("report: {}/report.html", config_.run.dir);
}

}  // namespace vmoba::train
