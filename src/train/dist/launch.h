// How this process was started: alone, or as one rank of a job (mpirun, srun). Reads environment variables only.
#pragma once
#include <initializer_list>
#include <optional>
#include <string>

namespace vmoba::train::dist {

struct Launch {
  bool under_mpi = false;  // a launcher waits for MPI_Init
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // among the ranks of this host, as far as the launcher says; World asks MPI
  bool local_rank_known = false;
  std::string launcher = "none";  // "mpirun", "srun" or "PMI", for messages
};

// Open MPI's mpirun, Slurm's srun --mpi=pmix|pmi2 and PMI launchers (MPICH, Intel MPI) are recognised by their
// variables. Throws Error(kInput) where RANK and WORLD_SIZE announce several processes (torchrun) and no MPI launcher
// does: such processes have no way to find each other here; likewise for several tasks of srun without PMIx. Beside an
// MPI launcher, RANK, WORLD_SIZE and LOCAL_RANK must agree with it.
Launch detect_launch();

// The number in the first of these environment variables that is set. Throws Error(kInput) where it is none.
std::optional<int> launcher_number(std::initializer_list<const char*> names);

}  // namespace vmoba::train::dist
