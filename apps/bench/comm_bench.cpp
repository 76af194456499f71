#include "apps/bench/comm_bench.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "core/check.h"
#include "core/elapsed.h"
#include "train/dist/nccl_communicator.h"
#include "train/dist/rank_device.h"

namespace vmoba::bench {
namespace {

using namespace train::dist;

// A timed round is at least this long on every rank, so that clocks and wake-ups do not count.
constexpr double kRoundSeconds = 2e-3;
constexpr int64_t kMostCalls = 200;

class Exchanges {
 public:
  Exchanges(Communicator& ranks, const at::Device& device, Collective operation, int64_t bytes)
      : ranks_(ranks), device_(device), operation_(operation) {
    const int64_t values = bytes / 4 / ranks.size() * ranks.size();
    const auto options = at::TensorOptions(at::kFloat).device(device);
    const bool gathers = operation == Collective::kAllGather, scatters = operation == Collective::kReduceScatter;
    in_ = at::zeros({gathers ? values / ranks.size() : values}, options);
    out_ = at::zeros({scatters ? values / ranks.size() : values}, options);
  }
  // The bytes of the whole tensor, a multiple of the ranks.
  int64_t bytes() const { return int64_t(std::max(in_.nbytes(), out_.nbytes())); }
  // Seconds per call.
  double time(int64_t calls) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) call()->wait();
    if (device_.is_cuda()) c10::cuda::device_synchronize();
    return seconds_since(start) / double(calls);
  }

 private:
  WorkPtr call() {
    switch (operation_) {
      case Collective::kAllReduce:
        return ranks_.all_reduce(in_);
      case Collective::kReduceScatter:
        return ranks_.reduce_scatter(in_, out_);
      case Collective::kAllGather:
        return ranks_.all_gather(in_, out_);
      case Collective::kAllToAll:
        return ranks_.all_to_all(in_, out_);
    }
    throw_runtime("unknown operation");
  }

  Communicator& ranks_;
  at::Device device_;
  Collective operation_;
  at::Tensor in_, out_;
};

double longest(World& world, double seconds) {
  const std::vector<double> all = all_gather_numbers(world.control(), {seconds});
  return *std::max_element(all.begin(), all.end());
}

CommCase measure(World& world, Exchanges& exchanges, const CommOptions& options) {
  double guess = 0;
  for (int64_t i = 0; i < options.warmup + 1; ++i) guess = longest(world, exchanges.time(1));
  const auto calls = std::clamp(int64_t(kRoundSeconds / std::max(guess, 1e-9)), int64_t{1}, kMostCalls);
  std::vector<double> seconds;
  for (int64_t i = 0; i < options.repeats; ++i) {
    barrier(world.control());
    seconds.push_back(longest(world, exchanges.time(calls)));
  }
  std::sort(seconds.begin(), seconds.end());
  return {exchanges.bytes(), seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

at::Device device_for(const World& world, const std::string& name) {
  const int gpus = int(c10::cuda::device_count());
  if (name == "cpu" || (name == "auto" && gpus == 0)) return at::Device(at::kCPU);
  VMOBA_CHECK_INPUT(gpus > 0, "--device cuda: expected a GPU on {}, found none; use --device cpu",
                    world.host(world.rank()));
  return device_of_rank(at::Device(at::kCUDA), world);
}

}  // namespace

CommResult bench_comm(World& world, const CommOptions& options) {
  VMOBA_CHECK_INPUT(options.least_bytes >= 4 * world.size() && options.most_bytes >= 2 * options.least_bytes,
                    "expected --least-bytes of at least {} (a value per rank) and --most-bytes at least twice as many, "
                    "found {} and {}",
                    4 * world.size(), options.least_bytes, options.most_bytes);
  const at::Device device = device_for(world, options.device);
  CommResult out;
  out.ranks = world.size();
  out.hosts = int(std::set<std::string>(world.hosts().begin(), world.hosts().end()).size());
  out.backend = device.is_cuda() ? "nccl" : out.ranks > 1 ? "mpi" : "single";
  out.device = device.is_cuda() ? at::cuda::getDeviceProperties(device.index())->name : "CPU";
  std::vector<int> everyone(size_t(world.size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  const c10::cuda::OptionalCUDAGuard guard(device.is_cuda() ? std::optional(device) : std::nullopt);
  const auto group = device.is_cuda() ? make_nccl_communicator(world.control(), device, world.device_watch(), everyone)
                                      : world.make_group(everyone);
  for (const Collective operation : kCollectives) {
    CommSeries series{operation, {}, {}};
    std::vector<Timing> timings;
    for (int64_t bytes = options.least_bytes; bytes <= options.most_bytes; bytes *= 4) {
      Exchanges exchanges(*group, device, operation, bytes);
      series.cases.push_back(measure(world, exchanges, options));
      const CommCase& last = series.cases.back();
      timings.push_back({moved_bytes(operation, double(last.bytes), out.ranks), last.median_s});
    }
    if (out.ranks > 1) series.fit = fit_alpha_beta(timings);
    out.series.push_back(std::move(series));
  }
  return out;
}

std::string comm_table(const CommResult& result) {
  std::string text = fmt::format("{} rank{} on {} host{}, {} ({})\n", result.ranks, result.ranks == 1 ? "" : "s",
                                 result.hosts, result.hosts == 1 ? "" : "s", result.device, result.backend);
  if (result.ranks == 1)
    text +=
        "one rank exchanges nothing: times are those of the calls and of copies; start `mpirun -n N vmoba-bench comm` "
        "to measure links\n";
  text += fmt::format("{:<15} {:>12} {:>12} {:>12} {:>12} {:>10}\n", "operation", "bytes", "median us", "least us",
                      "most us", "GB/s");
  for (const CommSeries& series : result.series) {
    for (const CommCase& c : series.cases)
      text += fmt::format("{:<15} {:>12} {:>12.1f} {:>12.1f} {:>12.1f} {:>10.3f}\n", collective_name(series.operation),
                          c.bytes, 1e6 * c.median_s, 1e6 * c.min_s, 1e6 * c.max_s,
                          moved_bytes(series.operation, double(c.bytes), result.ranks) / c.median_s / 1e9);
    if (result.ranks > 1)
      text += fmt::format("{:<15} latency {:.1f} us, {:.3f} GB/s moved by each rank\n",
                          collective_name(series.operation), 1e6 * series.fit.latency_s, series.fit.bytes_per_s / 1e9);
  }
  return text;
}

std::string comm_to_json(const CommResult& result) {
  nlohmann::json operations = nlohmann::json::array();
  for (const CommSeries& series : result.series) {
    nlohmann::json sizes = nlohmann::json::array();
    for (const CommCase& c : series.cases)
      sizes.push_back(
          {{"bytes", c.bytes}, {"median_us", 1e6 * c.median_s}, {"min_us", 1e6 * c.min_s}, {"max_us", 1e6 * c.max_s}});
    operations.push_back({{"name", collective_name(series.operation)},
                          {"latency_us", 1e6 * series.fit.latency_s},
                          {"gb_per_s", series.fit.bytes_per_s / 1e9},
                          {"sizes", sizes}});
  }
  const nlohmann::json json = {{"backend", result.backend},
                               {"device", result.device},
                               {"ranks", result.ranks},
                               {"hosts", result.hosts},
                               {"operations", operations}};
  return json.dump(2) + "\n";
}

}  // namespace vmoba::bench
