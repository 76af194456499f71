#include "train/dist/launch.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "core/check.h"

namespace vmoba::train::dist {
namespace {

bool is_set(const char* name) {
  return std::getenv(name) != nullptr;
}

Launch mpi_launch() {
  Launch out;
  if (is_set("OMPI_COMM_WORLD_SIZE")) {
    out.launcher = "mpirun";
    out.size = launcher_number({"OMPI_COMM_WORLD_SIZE"}).value_or(1);
    out.rank = launcher_number({"OMPI_COMM_WORLD_RANK"}).value_or(0);
  } else if (is_set("PMIX_RANK") || is_set("PMI_RANK")) {
    out.launcher = is_set("SLURM_PROCID") ? "srun" : "PMI";
    out.size = launcher_number({"PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}).value_or(1);
    out.rank = launcher_number({"PMIX_RANK", "PMI_RANK"}).value_or(0);
  } else {
    // srun sets this one, sbatch and salloc do not.
    const int tasks = launcher_number({"SLURM_STEP_NUM_TASKS"}).value_or(1);
    VMOBA_CHECK_INPUT(tasks <= 1,
                      "expected {} tasks of srun to be started through PMIx, found no PMIX_RANK: they would be {} runs "
                      "of their own; use `srun --mpi=pmix` (`srun --mpi=list` shows what this Slurm knows) or "
                      "`mpirun -n {}` in the allocation",
                      tasks, tasks, tasks);
    return out;
  }
  out.under_mpi = true;
  const int local_rank =
      launcher_number({"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID"}).value_or(-1);
  out.local_rank_known = local_rank >= 0;
  out.local_rank = std::max(0, local_rank);
  out.local_size = launcher_number({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}).value_or(1);
  return out;
}

}  // namespace

std::optional<int> launcher_number(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* text = std::getenv(name);
    if (text == nullptr) continue;
    int value = 0;
    const auto parsed = std::from_chars(text, text + std::strlen(text), value);
    VMOBA_CHECK_INPUT(parsed.ec == std::errc() && *parsed.ptr == '\0' && value >= 0,
                      "{}: expected a number of at least 0 from the launcher, found '{}'; unset it or mend it", name,
                      text);
    return value;
  }
  return std::nullopt;
}

Launch detect_launch() {
  const Launch launch = mpi_launch();
  const int world = launcher_number({"WORLD_SIZE"}).value_or(launch.size),
            rank = launcher_number({"RANK"}).value_or(launch.rank);
  VMOBA_CHECK_INPUT(launch.under_mpi || world <= 1,
                    "expected {} ranks (WORLD_SIZE) to be started by MPI, found no MPI launcher; torchrun cannot "
                    "connect them: use `mpirun -n {} vmoba-train ...` or `srun --mpi=pmix vmoba-train ...`, or unset "
                    "WORLD_SIZE for a run on one process",
                    world, world);
  VMOBA_CHECK_INPUT(!launch.under_mpi || (world == launch.size && rank == launch.rank),
                    "expected RANK and WORLD_SIZE to be {} and {} as {} says, found {} and {}; unset them", launch.rank,
                    launch.size, launch.launcher, rank, world);
  // Not every launcher numbers the ranks of a host.
  const int local_rank =
      launch.local_rank_known ? launcher_number({"LOCAL_RANK"}).value_or(launch.local_rank) : launch.local_rank;
  VMOBA_CHECK_INPUT(local_rank == launch.local_rank, "expected LOCAL_RANK to be {} as {} says, found {}; unset it",
                    launch.local_rank, launch.launcher, local_rank);
  return launch;
}

}  // namespace vmoba::train::dist
