#include "train/report/callback.h"

#include "core/log.h"

namespace vmoba::train {

void without_ending_the_run(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::exception& e) {
    log_warning("{}; training goes on without it", e.what());
  }
}

void Callbacks::tell(const std::function<void(Callback&)>& news) {
  for (const auto& listener : listeners_) without_ending_the_run([&] { news(*listener); });
}

void Callbacks::on_step(const StepReport& report) {
  tell([&](Callback& listener) { listener.on_step(report); });
}

void Callbacks::on_checkpoint(int64_t step, const std::string& folder) {
  tell([&](Callback& listener) { listener.on_checkpoint(step, folder); });
}

void Callbacks::on_validation(int64_t step, const std::vector<ValidationVideo>& videos) {
  tell([&](Callback& listener) { listener.on_validation(step, videos); });
}

void Callbacks::on_end() {
  tell([](Callback& listener) { listener.on_end(); });
}

}  // namespace vmoba::train
