// What every program ends with: exceptions become messages and exit codes.
#include "apps/main_guard.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <thread>

#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using test::contains;

namespace {

struct Ended {
  int code;
  std::string said;
};

Ended run(const std::function<int()>& body) {
  ::setenv("OMP_WAIT_POLICY", "passive", 1);  // no restart of the test program
  CLI::App app;
  char name[] = "program";
  char* arguments[] = {name, nullptr};
  Ended out{};
  out.said = test::capture_stderr([&] { out.code = apps::guarded_main(app, 1, arguments, body); });
  return out;
}

}  // namespace

TEST_CASE("errors have their exit codes") {
  CHECK(run([] { return 0; }).code == 0);
  CHECK(run([] { return 75; }).code == 75);
  CHECK(run([]() -> int { throw_input("wrong key"); }).code == 2);
  const Ended runtime = run([]() -> int { throw_runtime("broken disk"); });
  CHECK(runtime.code == 1);
  CHECK(contains(runtime.said, "broken disk"));
  CHECK(run([]() -> int { throw std::runtime_error("x"); }).code == 1);
}

TEST_CASE("a key of the configuration with dashes is answered with what to write") {
  const auto said = [](const char* word, bool takes_keys) {
    ::setenv("OMP_WAIT_POLICY", "passive", 1);
    CLI::App app;
    apps::ConfigArguments keys;
    if (takes_keys) keys.add_to(app);
    std::string name = "program", argument = word;
    char* arguments[] = {name.data(), argument.data(), nullptr};
    int code = 0;
    const std::string out =
        test::capture_stderr([&] { code = apps::guarded_main(app, 2, arguments, [] { return 0; }); });
    CHECK(code == 2);
    return out;
  };
  CHECK(contains(said("--train.steps=5", true), "write 'train.steps=5'"));
  CHECK(contains(said("--learning_rate", true), "write 'learning_rate=VALUE'"));
  CHECK_FALSE(contains(said("--resmue", true), "without dashes"));
  CHECK_FALSE(contains(said("--train.steps=5", false), "without dashes"));
}

TEST_CASE("a GPU and a host without memory are told apart, with the keys that help") {
  const Ended gpu = run([]() -> int {
    C10_THROW_ERROR(OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 GiB.");
    return 0;
  });
  CHECK(gpu.code == 1);
  for (const char* part : {"GPU memory", "Tried to allocate 20.00 GiB", "model.recompute", "train.micro_batch",
                           "parallel.shard", "--dry-run"})
    CHECK(contains(gpu.said, part));
  for (const bool torch : {false, true}) {
    const Ended host = run([&]() -> int {
      if (!torch) throw std::bad_alloc();
      C10_THROW_ERROR(Error, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.");
      return 0;
    });
    CHECK(host.code == 1);
    CHECK(contains(host.said, "host memory"));
    CHECK(contains(host.said, "data.prefetch_clips"));
  }
}

TEST_CASE("all refusals are told together, each once") {
  const auto refuse = [](const std::string& what) { return [what] { throw_input("{}", what); }; };
  CHECK(apps::refusals_of({}).empty());
  CHECK(apps::refusals_of({refuse("a"), [] {}, refuse("b"), refuse("a")}) == "a\nb");
  CHECK_THROWS_AS(apps::refusals_of({[] { throw_runtime("disk"); }}), Error);
}
