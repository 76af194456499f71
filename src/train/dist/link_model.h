// What an exchange between ranks costs: a latency and a rate (the alpha-beta model of Hockney 1994) for each kind of
// collective operation, fitted to timings by `vmoba-bench comm`, kept in its JSON file, and scaled to other numbers of
// ranks by `vmoba-train --dry-run --ranks`.
//
// Seconds = latency + moved / rate, where `moved` counts the bytes that a rank must send at least (nccl-tests' "bus
// bandwidth"): so the rate of one link is nearly the same for all operations and numbers of ranks.
#pragma once
#include <array>
#include <string>
#include <vector>

namespace vmoba::train::dist {

enum class Collective { kAllReduce, kReduceScatter, kAllGather, kAllToAll };
constexpr std::array<Collective, 4> kCollectives = {Collective::kAllReduce, Collective::kReduceScatter,
                                                    Collective::kAllGather, Collective::kAllToAll};
const char* collective_name(Collective operation);  // "all_reduce", ...

// Of the whole tensor's `bytes`: the values of an all_reduce, the input of a reduce_scatter or all_to_all, the output
// of an all_gather. 2 (n-1)/n of them for all_reduce, else (n-1)/n.
double moved_bytes(Collective operation, double bytes, int ranks);

struct AlphaBeta {
  double latency_s = 0, bytes_per_s = 0;
  double seconds(double moved) const { return latency_s + moved / bytes_per_s; }
};

struct Timing {
  double moved_bytes = 0, seconds = 0;
};
// The line through the timings with the least sum of squared relative errors; never a negative latency. Where
// noise hides that larger tensors take longer, the rate is what the largest reached. Throws Error(kRuntime) for fewer
// than two sizes.
AlphaBeta fit_alpha_beta(const std::vector<Timing>& timings);

// By operation, in the order of kCollectives.
using LinkCosts = std::array<AlphaBeta, kCollectives.size()>;

// One run of `vmoba-bench comm`.
struct CommMeasurement {
  std::string backend;  // "mpi", "nccl"
  int ranks = 1, hosts = 1;
  LinkCosts costs;
};
// Its file. Throws Error(kInput) naming what is missing or out of range.
CommMeasurement read_comm_measurement(const std::string& path);

// A group of ranks that is spread evenly over hosts.
struct GroupShape {
  int ranks = 1, ranks_on_host = 1;
};

// Links of a cluster: `inside` between two ranks of a host, `between` through one rank's own share of its host's
// network. Latencies are of one round; an operation over n ranks has ceil(log2 n) of them.
struct Cluster {
  int ranks_per_host = 8;
  LinkCosts inside, between;
  std::string source;  // where the numbers come from, for reports

  // H100 hosts with NVLink 4 and a 400 Gb/s InfiniBand NDR port for each GPU. NVIDIA's data sheets give 450 GB/s and 50
  // GB/s in each direction; 80 % and 90 % of them are assumed to be reached, with rounds of 8 and 15 us.
  static Cluster nvlink4_and_ndr();
  // Takes over a measurement: of one host for the links inside, of several for those between.
  void adopt(const CommMeasurement& measured);

  // Of one operation on a tensor of `bytes`. A ring over several hosts uses all ports of a host at once; an all_to_all
  // sends each rank's bytes for other hosts through that rank's port.
  double seconds(Collective operation, double bytes, const GroupShape& group) const;
};

}  // namespace vmoba::train::dist
