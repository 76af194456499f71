// What the launchers' environment variables mean.
#include <cstdlib>

#include "support/catch.h"
#include "support/messages.h"
#include "train/dist/launch.h"

using namespace vmoba;
using namespace vmoba::train::dist;

namespace {

// These variables and no other of a launcher's, until it goes.
class Environment {
 public:
  using Values = std::vector<std::pair<std::string, std::string>>;
  explicit Environment(const Values& values) {
    for (const char* name : kNames) {
      const char* old = std::getenv(name);
      if (old) old_.emplace_back(name, old);
      ::unsetenv(name);
    }
    for (const auto& [name, value] : values) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const char* name : kNames) ::unsetenv(name);
    for (const auto& [name, value] : old_) ::setenv(name.c_str(), value.c_str(), 1);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  static constexpr const char* kNames[] = {"OMPI_COMM_WORLD_SIZE",
                                           "OMPI_COMM_WORLD_RANK",
                                           "OMPI_COMM_WORLD_LOCAL_RANK",
                                           "OMPI_COMM_WORLD_LOCAL_SIZE",
                                           "PMIX_RANK",
                                           "PMIX_NAMESPACE",
                                           "PMI_RANK",
                                           "PMI_SIZE",
                                           "SLURM_PROCID",
                                           "SLURM_NTASKS",
                                           "SLURM_STEP_NUM_TASKS",
                                           "SLURM_LOCALID",
                                           "MPI_LOCALRANKID",
                                           "MPI_LOCALNRANKS",
                                           "RANK",
                                           "WORLD_SIZE",
                                           "LOCAL_RANK"};
  Values old_;
};

}  // namespace

TEST_CASE("a plain start is one process without MPI") {
  const Environment none(Environment::Values{});
  const Launch launch = detect_launch();
  CHECK_FALSE(launch.under_mpi);
  CHECK(launch.size == 1);
}

TEST_CASE("mpirun, srun and PMI launchers are recognised") {
  {
    const Environment mpirun({{"OMPI_COMM_WORLD_SIZE", "8"},
                              {"OMPI_COMM_WORLD_RANK", "5"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                              {"PMIX_RANK", "5"}});
    const Launch launch = detect_launch();
    CHECK(launch.under_mpi);
    CHECK(launch.launcher == "mpirun");
    CHECK((launch.rank == 5 && launch.size == 8 && launch.local_rank == 1 && launch.local_size == 4));
  }
  {
    const Environment srun({{"PMIX_RANK", "3"}, {"SLURM_PROCID", "3"}, {"SLURM_NTASKS", "16"}, {"SLURM_LOCALID", "3"}});
    const Launch launch = detect_launch();
    CHECK(launch.launcher == "srun");
    CHECK((launch.rank == 3 && launch.size == 16 && launch.local_rank == 3));
  }
  {
    // srun --mpi=pmix -n 4 in an allocation of 16 tasks, as Slurm 23 sets it.
    const Environment step({{"PMIX_RANK", "2"},
                            {"PMIX_NAMESPACE", "slurm.pmix.12.0"},
                            {"SLURM_PROCID", "2"},
                            {"SLURM_NTASKS", "16"},
                            {"SLURM_STEP_NUM_TASKS", "4"},
                            {"SLURM_LOCALID", "0"}});
    const Launch launch = detect_launch();
    CHECK((launch.under_mpi && launch.rank == 2 && launch.size == 4 && launch.local_rank == 0));
  }
  {
    const Environment pmi2({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}, {"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}});
    const Launch launch = detect_launch();
    CHECK((launch.launcher == "srun" && launch.rank == 1 && launch.size == 4));
  }
  {
    const Environment hydra({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}});
    const Launch launch = detect_launch();
    CHECK((launch.launcher == "PMI" && launch.local_rank == 1 && launch.local_size == 2));
  }
  // sbatch and salloc set Slurm's variables for plain programs too: without PMI there is nothing to join.
  const Environment salloc({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}});
  CHECK_FALSE(detect_launch().under_mpi);
}

TEST_CASE("tasks of srun without PMIx are refused, one task is a plain start") {
  {
    const Environment none({{"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_LOCALID", "1"}});
    CHECK(test::contains(test::refusal_of([] { detect_launch(); }), "srun --mpi=pmix"));
  }
  const Environment one({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_NTASKS", "1"}});
  CHECK_FALSE(detect_launch().under_mpi);
}

TEST_CASE("torchrun's variables alone are refused, beside a launcher they must agree") {
  {
    const Environment torchrun({{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}});
    const std::string message = test::refusal_of([] { detect_launch(); });
    CHECK(test::contains(message, "mpirun -n 4"));
  }
  {
    const Environment one({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
    CHECK_FALSE(detect_launch().under_mpi);
  }
  {
    const Environment both(
        {{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "2"}, {"RANK", "2"}, {"WORLD_SIZE", "4"}});
    CHECK(detect_launch().rank == 2);
  }
  {
    const Environment differ(
        {{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "2"}, {"RANK", "0"}, {"WORLD_SIZE", "1"}});
    CHECK(test::contains(test::refusal_of([] { detect_launch(); }), "unset them"));
  }
  {
    const Environment local({{"OMPI_COMM_WORLD_SIZE", "4"},
                             {"OMPI_COMM_WORLD_RANK", "2"},
                             {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                             {"LOCAL_RANK", "1"}});
    CHECK(test::contains(test::refusal_of([] { detect_launch(); }), "LOCAL_RANK to be 0"));
  }
  {
    // torchrun's local number beside a launcher that gives none: nothing to compare.
    const Environment unknown({{"PMIX_RANK", "3"}, {"PMI_SIZE", "4"}, {"LOCAL_RANK", "1"}});
    CHECK(detect_launch().rank == 3);
  }
  const Environment damaged(Environment::Values{{"WORLD_SIZE", "four"}});
  CHECK(test::contains(test::refusal_of([] { detect_launch(); }), "WORLD_SIZE"));
}
