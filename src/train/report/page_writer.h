// The callback that keeps <run.dir>/report.html up to date (report/report.h) and makes its contact sheet once and
// the grid of its samples after each validation. A thread of its own does all that, so that training does not wait;
// it borrows the plan and owns the rest.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "config/root_config.h"
#include "data/clip_plan.h"
#include "train/report/callback.h"

namespace vmoba::train {

class PageWriter final : public Callback {
 public:
  // `plan` must outlive it. Begins with the contact sheet and a first page.
  PageWriter(const RootConfig& config, const data::ClipPlan& plan);
  // Gives up what is under way.
  ~PageWriter() override;

  void on_checkpoint(int64_t step, const std::string& folder) override;
  void on_validation(int64_t step, const std::vector<ValidationVideo>& videos) override;
  // Returns when the page of the run's end is written.
  void on_end() override;

 private:
  void work();
  void ask(bool grid);

  const RootConfig config_;
  const data::ClipPlan& plan_;
  std::atomic<bool> cancel_sheet_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool wanted_ = true, grid_wanted_ = false, busy_ = false, over_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace vmoba::train
