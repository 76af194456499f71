// The groups that say where a run lives and how its ranks share the work.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/choice.h"
#include "core/config.h"

namespace vmoba {

// The `run:` group: where a run lives and how it talks.
struct RunConfig {
  std::string dir = "runs/default";
  std::string device = "auto";  // auto | cpu | cuda
  std::string log_level = "info";
  bool deterministic = false;  // GPU only
  double gpu_memory_gib = 0;   // that training takes at most; 0: all
  int64_t threads = 0;         // CPU threads of tensor operations; 0: all cores
  int64_t profile_step = 0;    // 0: none
  double grace_s = 60;         // from a stop signal to the end
  std::string save_before;     // "", a duration since the start, or "slurm"

  void visit(ConfigVisitor& v);
};

// parallel.gather: how often ranks that hold the weights together gather a block's in a step.
enum class Gather { kAuto, kAgain, kOnce };
const Choices<Gather>& choices_of(Gather);

// The `parallel:` group: how the ranks of a job share the work (src/train/dist/mesh.h).
struct ParallelConfig {
  int64_t data = 0;  // 0: what the number of ranks leaves
  int64_t shard = 1;
  int64_t sequence = 1;
  Gather gather = Gather::kAuto;
  double timeout_s = 45;
  double start_timeout_s = 1800;
  int64_t report_every = 100;

  void visit(ConfigVisitor& v);
};

}  // namespace vmoba
