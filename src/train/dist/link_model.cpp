#include "train/dist/link_model.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"

namespace vmoba::train::dist {
namespace {

double rounds(int ranks) {
  return std::max(1.0, std::ceil(std::log2(double(ranks))));
}

double number_in(const nlohmann::json& object, const char* key, double least, const std::string& path) {
  const auto found = object.find(key);
  const bool good = found != object.end() && found->is_number() && found->get<double>() >= least &&
                    std::isfinite(found->get<double>());
  VMOBA_CHECK_INPUT(good, "{}: expected a file of `vmoba-bench comm --json` with a number {} of at least {}, found {}",
                    path, key, least, found == object.end() ? "none" : json_text(*found));
  return found->get<double>();
}

AlphaBeta costs_of(const nlohmann::json& operations, const char* name, const std::string& path) {
  for (const nlohmann::json& operation : operations) {
    if (!operation.is_object() || operation.value("name", "") != name) continue;
    return {1e-6 * number_in(operation, "latency_us", 0, path), 1e9 * number_in(operation, "gb_per_s", 1e-6, path)};
  }
  throw_input("{}: expected timings of {}, found none; measure again with `vmoba-bench comm --json`", path, name);
}

CommMeasurement measurement_of(const nlohmann::json& file, const std::string& path) {
  VMOBA_CHECK_INPUT(file.is_object() && file.contains("operations") && file["operations"].is_array(),
                    "{}: expected a file of `vmoba-bench comm --json`, found no list of operations", path);
  CommMeasurement out;
  out.backend = file.value("backend", "");
  out.ranks = int(std::min(1e6, number_in(file, "ranks", 1, path)));
  out.hosts = int(std::min(1e6, number_in(file, "hosts", 1, path)));
  VMOBA_CHECK_INPUT(out.ranks >= 2,
                    "{}: expected a measurement with at least 2 ranks, found {}; start vmoba-bench with mpirun -n",
                    path, out.ranks);
  VMOBA_CHECK_INPUT(out.ranks % out.hosts == 0,
                    "{}: expected as many ranks on every host, found {} ranks on {} hosts; measure with equal hosts",
                    path, out.ranks, out.hosts);
  for (const Collective operation : kCollectives)
    out.costs[size_t(operation)] = costs_of(file["operations"], collective_name(operation), path);
  return out;
}

}  // namespace

const char* collective_name(Collective operation) {
  constexpr std::array<const char*, kCollectives.size()> kNames = {"all_reduce", "reduce_scatter", "all_gather",
                                                                   "all_to_all"};
  return kNames[size_t(operation)];
}

double moved_bytes(Collective operation, double bytes, int ranks) {
  return (operation == Collective::kAllReduce ? 2 : 1) * bytes * double(ranks - 1) / double(ranks);
}

AlphaBeta fit_alpha_beta(const std::vector<Timing>& timings) {
  // Weighted by 1 / seconds^2: minimises sum((latency + moved * cost - seconds)^2 / seconds^2).
  double w = 0, wx = 0, wxx = 0, wy = 0, wxy = 0;
  for (const Timing& t : timings) {
    const double weight = 1 / (t.seconds * t.seconds);
    w += weight;
    wx += weight * t.moved_bytes;
    wxx += weight * t.moved_bytes * t.moved_bytes;
    wy += weight * t.seconds;
    wxy += weight * t.moved_bytes * t.seconds;
  }
  const double determinant = w * wxx - wx * wx;
  VMOBA_CHECK(determinant > 1e-12 * w * wxx, "expected timings of at least two sizes, found {} timings",
              timings.size());
  const double latency = (wxx * wy - wx * wxy) / determinant;
  if (latency < 0) return {0, wxx / wxy};  // the line through the origin
  const double cost = (w * wxy - wx * wy) / determinant;
  if (cost > 0) return {latency, 1 / cost};
  const auto by_size = [](const Timing& a, const Timing& b) { return a.moved_bytes < b.moved_bytes; };
  const Timing& largest = *std::max_element(timings.begin(), timings.end(), by_size);
  return {latency, largest.moved_bytes / largest.seconds};
}

CommMeasurement read_comm_measurement(const std::string& path) {
  const nlohmann::json file = read_json(path, int64_t{16} << 20, "timings of `vmoba-bench comm --json`");
  return use_json(path, [&] { return measurement_of(file, path); });
}

Cluster Cluster::nvlink4_and_ndr() {
  Cluster out;
  out.inside.fill({75e-6, 0.8 * 450e9});
  out.between.fill({15e-6, 0.9 * 50e9});
  out.source = "assumed: NVLink 4 at 80 % of 450 GB/s, InfiniBand NDR at 90 % of 50 GB/s per GPU";
  return out;
}

void Cluster::adopt(const CommMeasurement& measured) {
  const int on_host = measured.ranks / measured.hosts;
  for (const Collective operation : kCollectives) {
    AlphaBeta one = measured.costs[size_t(operation)];
    one.latency_s /= rounds(measured.ranks);
    if (measured.hosts == 1) {
      inside[size_t(operation)] = one;
      continue;
    }
    // From the rate of the whole group to that of one port: the reverse of seconds().
    if (operation == Collective::kAllToAll)
      one.bytes_per_s *= double(measured.ranks - on_host) / double(measured.ranks - 1);
    else
      one.bytes_per_s /= double(on_host);
    between[size_t(operation)] = one;
  }
}

double Cluster::seconds(Collective operation, double bytes, const GroupShape& group) const {
  if (group.ranks <= 1) return 0;
  const AlphaBeta &near = inside[size_t(operation)], &far = between[size_t(operation)];
  const double moved = moved_bytes(operation, bytes, group.ranks);
  if (group.ranks <= group.ranks_on_host) return rounds(group.ranks) * near.latency_s + moved / near.bytes_per_s;
  const double latency = rounds(group.ranks) * far.latency_s;
  if (operation == Collective::kAllToAll) {
    const double part = bytes / double(group.ranks);
    return latency + std::max(part * double(group.ranks - group.ranks_on_host) / far.bytes_per_s,
                              part * double(group.ranks_on_host - 1) / near.bytes_per_s);
  }
  const double ports = far.bytes_per_s * double(group.ranks_on_host);
  return latency + moved / (group.ranks_on_host > 1 ? std::min(near.bytes_per_s, ports) : ports);
}

}  // namespace vmoba::train::dist
