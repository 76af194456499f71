// Programs do not link MPI: one process runs where there is none, and ranks say what to install.
#include <sstream>

#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"
#include "train/dist/train_job.h"

using namespace vmoba::test;

namespace {

// A run of one step whose MPI library is `library`, begun by a launcher of these variables.
ProcessResult run_with(const std::string& library, const std::vector<std::string>& launcher = {}) {
  const TemporaryFolder folder;
  std::vector<std::string> environment = kEnvironment;
  environment.push_back("VMOBA_MPI_LIBRARY=" + library);
  environment.insert(environment.end(), launcher.begin(), launcher.end());
  return run_process(train_command(0, kTiny, folder.path() + "/run", {"train.steps=1", "train.validate_every=0"}),
                     environment);
}

std::vector<std::string> mpirun_of(int ranks) {
  return {"OMPI_COMM_WORLD_SIZE=" + std::to_string(ranks), "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_LOCAL_RANK=0",
          "OMPI_COMM_WORLD_LOCAL_SIZE=" + std::to_string(ranks)};
}

}  // namespace

TEST_CASE("the programs name no MPI among the libraries that they need") {
  const ProcessResult result = run_process({"readelf", "-d", kTrain});
  REQUIRE(result.exit_code == 0);
  CHECK(contains(result.output, "libavformat"));  // it did read the list
  CHECK_FALSE(contains(result.output, "libmpi"));
}

TEST_CASE("one process trains without MPI, also one that a launcher started") {
  for (const auto& launcher : {std::vector<std::string>{}, mpirun_of(1)}) {
    const ProcessResult result = run_with("/nowhere/libmpi.so.40", launcher);
    INFO(result.output);
    CHECK(result.exit_code == 0);
  }
}

TEST_CASE("ranks without Open MPI say what to install") {
  const std::vector<std::string> pmix = {"PMIX_RANK=0"};  // of how many, nobody says
  for (const auto& launcher : {mpirun_of(2), pmix}) {
    const ProcessResult result = run_with("/nowhere/libmpi.so.40", launcher);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, "/nowhere/libmpi.so.40"));
    CHECK(contains(result.output, "apt-get install openmpi-bin"));
    CHECK(contains(result.output, "VMOBA_MPI_LIBRARY"));
  }
  const ProcessResult other = run_with("libm.so.6", mpirun_of(2));
  INFO(other.output);
  CHECK(other.exit_code == 2);
  CHECK(contains(other.output, "another MPI"));
}
