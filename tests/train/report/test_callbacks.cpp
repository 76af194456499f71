// Listeners of a run: what one of them throws is a warning, and the others hear the news all the same.
#include "core/check.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/stderr_capture.h"
#include "train/report/callback.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

struct Broken final : Callback {
  void on_step(const StepReport&) override { throw_runtime("expected to write 'x', found: No space left on device"); }
  void on_end() override { throw std::bad_alloc(); }
};

struct Counting final : Callback {
  explicit Counting(int& heard) : heard(heard) {}
  void on_step(const StepReport&) override { ++heard; }
  void on_end() override { ++heard; }
  int& heard;
};

}  // namespace

TEST_CASE("a callback that fails ends no run") {
  int heard = 0;
  std::vector<std::unique_ptr<Callback>> listeners;
  listeners.push_back(std::make_unique<Broken>());
  listeners.push_back(std::make_unique<Counting>(heard));
  Callbacks callbacks(std::move(listeners));
  const std::string said = test::capture_stderr([&] {
    callbacks.on_step({});
    callbacks.on_end();
  });
  CHECK(heard == 2);
  CHECK(test::contains(said, "No space left on device"));
}
