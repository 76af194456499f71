// What `cmake --install --component development` gives: examples/cpp configures, builds and runs against it from a
// folder of its own, and a program that asks for another torch is told so.
#include <filesystem>

#include "support/catch.h"
#include "support/messages.h"
#include "support/must_run.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kCmake = VMOBA_CMAKE;

}  // namespace

TEST_CASE("a project of its own builds against the installed attention library") {
  const TemporaryFolder folder;
  const std::string stage = folder.path() + "/stage", moved = folder.path() + "/moved",
                    build = folder.path() + "/build";
  must_run({kCmake, "--install", VMOBA_BUILD_DIR, "--component", "development", "--prefix", stage});
  CHECK_FALSE(fs::exists(stage + "/lib/vmoba"));  // no copy of libtorch
  fs::rename(stage, moved);                       // and nothing that knows where it was installed
  const std::vector<std::string> configure = {kCmake, "-S",  source_dir() + "/examples/cpp",
                                              "-B",   build, "-DCMAKE_PREFIX_PATH=" + moved};
  std::vector<std::string> with_torch = configure, without = configure;
  with_torch.push_back("-Dvmoba_SITE=" VMOBA_SITE);
  without.push_back("-Dvmoba_SITE=" + folder.path());

  const ProcessResult refused = run_process(without);
  INFO(refused.output);
  CHECK(refused.exit_code != 0);
  CHECK(contains(refused.output, "expected torch 2.11.0"));

  must_run(with_torch);
  must_run({kCmake, "--build", build});
  const std::string said = must_run({build + "/vmoba_example"});
  CHECK(contains(said, "density 0."));
  CHECK(contains(said, "of 4 blocks"));
  CHECK(contains(said, "a wrong key: "));
  CHECK(contains(said, "tua"));
}
