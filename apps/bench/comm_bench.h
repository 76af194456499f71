// `vmoba-bench comm`: how long the ranks of this job take to exchange tensors, by operation and size, and the latency
// and rate that these times follow (docs/distributed.md). MPI carries CPU tensors, NCCL GPU tensors. One rank shows
// what the calls themselves cost.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "train/dist/link_model.h"
#include "train/dist/world.h"

namespace vmoba::bench {

struct CommOptions {
  std::string device = "auto";  // auto | cpu | cuda
  int64_t least_bytes = 4 << 10, most_bytes = 64 << 20;
  int64_t repeats = 9, warmup = 2;
};

// Of the slowest rank, for one operation on tensors of `bytes` (link_model.h says of which tensor).
struct CommCase {
  int64_t bytes = 0;
  double median_s = 0, min_s = 0, max_s = 0;
};

struct CommSeries {
  train::dist::Collective operation;
  std::vector<CommCase> cases;
  train::dist::AlphaBeta fit;  // of the medians; zeros for one rank, which moves nothing
};

struct CommResult {
  std::string backend;  // "mpi", "nccl"; "single" for one rank
  std::string device;
  int ranks = 1, hosts = 1;
  std::vector<CommSeries> series;
};

// Collective over the world; every rank gets the same result. Throws Error(kInput) where the ranks have no GPU each.
CommResult bench_comm(train::dist::World& world, const CommOptions& options);
std::string comm_table(const CommResult& result);
// What train::dist::read_comm_measurement reads.
std::string comm_to_json(const CommResult& result);

}  // namespace vmoba::bench
