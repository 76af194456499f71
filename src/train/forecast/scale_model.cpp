#include "train/forecast/scale_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/bytes.h"
#include "core/check.h"
#include "train/forecast/memory_advice.h"
#include "train/forecast/step_flops.h"
#include "train/forecast/step_seconds.h"

namespace vmoba::train {
namespace {

using dist::Collective;
using dist::GroupShape;
using dist::MeshSizes;

// Adds up what one kind of group sends and how long that takes.
class Traffic {
 public:
  Traffic(const dist::Cluster& cluster, GroupShape group) : cluster_(cluster), group_(group) {}
  // `count` operations on tensors of `bytes`; returns the seconds of one.
  double add(Collective operation, double bytes, double count) {
    const double one = cluster_.seconds(operation, bytes, group_);
    seconds_ += count * one;
    inside_seconds_ += count * cluster_.seconds(operation, bytes, {group_.ranks, group_.ranks});
    if (group_.ranks > 1) sent_bytes_ += count * dist::moved_bytes(operation, bytes, group_.ranks);
    return one;
  }
  double seconds() const { return seconds_; }
  // What the same operations would take inside one host.
  double inside_seconds() const { return inside_seconds_; }
  double sent_bytes() const { return sent_bytes_; }

 private:
  const dist::Cluster& cluster_;
  GroupShape group_;
  double seconds_ = 0, inside_seconds_ = 0, sent_bytes_ = 0;
};

// Neighbouring ranks, and ranks that are `stride` apart.
GroupShape neighbours(int ranks, int ranks_per_host) {
  return {ranks, std::min(ranks, ranks_per_host)};
}
GroupShape apart(int ranks, int stride, int ranks_per_host) {
  return {ranks, std::min(ranks, std::max(1, ranks_per_host / stride))};
}

struct PassCosts {
  double sent_bytes = 0, waiting_s = 0;
};

// Seconds that computing loses to operations of which `hidden_s` of `all_s` hide behind it: NCCL's kernels take
// multiprocessors from the products beside them. Steps of 1.3B and 14B over two and four H200 lost 0.8 to 1.8 seconds
// for each that hid (docs/benchmarks.md). Between hosts it is not measured; there they count as inside a host.
double lost_to_hidden(double hidden_s, double all_s, double inside_s) {
  constexpr double kLostToHidden = 1.25;
  return all_s > 0 ? kLostToHidden * inside_s * hidden_s / all_s : 0;
}

// Of every step: the sum of all gradients in buckets, behind the last backward.
PassCosts replicated_gradients(const ModelSizes& model, const MeshSizes& sizes, const ScaleOptions& o,
                               double backward_s) {
  const int ranks = sizes.data * sizes.state_ranks();
  Traffic traffic(o.cluster, neighbours(ranks, o.cluster.ranks_per_host));
  const double bytes = 4 * double(model.trainable), buckets = std::ceil(bytes / double(dist::kBucketBytes));
  const double last = traffic.add(Collective::kAllReduce, bytes / buckets, buckets);
  const double all = traffic.seconds(), waiting = std::max(last, all - backward_s);
  return {traffic.sent_bytes(), waiting + lost_to_hidden(all - waiting, all, traffic.inside_seconds())};
}

// Of one pass: what a rank copies around its gathers and sums (dist/sharded_weights.cpp). Its parts into one tensor and
// whole parameters out of all ranks'; gradients into rows of zeros, and the sum of its rows onto its parts.
double copy_seconds(const RootConfig& config, const ModelSizes& model, int ranks, double gathers) {
  const double values = double(model.parameters), part = values / double(ranks);
  double bytes = double(carried_width(config)) * gathers * (2 * part + 2 * values);
  if (!config.lora.enabled()) bytes += 4 * (3 * values + 3 * part);
  return bytes / h200_rates().bytes;
}

// Of one pass: gather weights for forward and, where backward recomputes, again; scatter sums of gradients; in the last
// pass of a step the parts are summed over the copies.
PassCosts sharded_pass(const RootConfig& config, const ModelSizes& model, const MeshSizes& sizes, const ScaleOptions& o,
                       double pass_s, bool weights_stay, bool last_pass) {
  const double blocks = double(model::layer_count(config.model)), outer = double(model.outer);
  const double block = double(model.parameters - model.outer) / blocks, fp8 = double(model.fp8) / blocks;
  const double gathers = recomputes(config) && !weights_stay ? 2 : 1, width = double(carried_width(config));
  Traffic state(o.cluster, neighbours(sizes.state_ranks(), o.cluster.ranks_per_host));
  double first = state.add(Collective::kAllGather, width * outer, 1);
  first += state.add(Collective::kAllGather, width * (block - fp8) + fp8, gathers * blocks);
  Traffic replicas(o.cluster, apart(sizes.data, sizes.state_ranks(), o.cluster.ranks_per_host));
  if (!config.lora.enabled()) {
    state.add(Collective::kReduceScatter, 4 * outer, 1);
    first += state.add(Collective::kReduceScatter, 4 * block, blocks);
    if (last_pass) {
      replicas.add(Collective::kAllReduce, 4 * outer / sizes.state_ranks(), 1);
      first += replicas.add(Collective::kAllReduce, 4 * block / sizes.state_ranks(), blocks);
    }
  }
  const double all = state.seconds() + replicas.seconds(), waiting = std::max(first, all - pass_s);
  const double lost = lost_to_hidden(all - waiting, all, state.inside_seconds() + replicas.inside_seconds());
  return {state.sent_bytes() + replicas.sent_bytes(),
          waiting + lost + copy_seconds(config, model, sizes.state_ranks(), gathers)};
}

// Of one pass: q, k, v and the result of each layer's self attention, forward, backward and where the layer is computed
// again; the velocity's tokens at the end. q and k hide behind the projection that follows them, and their gradients
// behind those of v and k. Each exchange copies the heads that it brings together or parts (dist/ulysses.cpp).
PassCosts sequence_pass(const RootConfig& config, const MeshSizes& sizes, const ScaleOptions& o, int64_t tokens,
                        int64_t micro) {
  const model::ModelConfig& m = config.model;
  const int64_t own = (tokens + sizes.sequence - 1) / sizes.sequence;
  const double bytes = double(compute_width(config)) * double(own * micro * m.heads * m.head_dim);
  Traffic traffic(o.cluster, neighbours(sizes.sequence, o.cluster.ranks_per_host));
  const double width = double(m.heads * m.head_dim);
  const double count = double(4 * model::layer_count(m) * (recomputes(config) ? 3 : 2));
  const double exchange_s = traffic.add(Collective::kAllToAll, bytes, count);
  const double rate = o.flops_per_s > 0 ? o.flops_per_s : h200_rates().products;
  const double projection_s = 2 * double(own * micro) * width * width / rate;
  const double patch = double(m.patch_size[0] * m.patch_size[1] * m.patch_size[2] * m.out_channels);
  traffic.add(Collective::kAllGather, 4 * patch * double(own * sizes.sequence * micro), 1);
  const double copies_s = count * 2 * bytes / h200_rates().bytes;
  return {traffic.sent_bytes(), traffic.seconds() + copies_s - count / 2 * std::min(exchange_s, projection_s)};
}

int64_t next_multiple(int64_t value, int64_t of) {
  return (value + of - 1) / of * of;
}

// Of the most expensive samples.
BucketEstimate costliest(const RunEstimate& run) {
  BucketEstimate out;
  for (const BucketEstimate& bucket : run.buckets)
    if (bucket.flops_sparse > out.flops_sparse) out = bucket;
  return out;
}

// Seconds that one rank alone would take.
struct ComputeCosts {
  double sample = 0, backward = 0;  // of training on a sample, and of it within backward
  double update = 0;                // of the optimiser
};

// What memory is left for what backward may keep, and whether gathered weights stay beside it within a step.
struct MemoryLeft {
  double bytes = 0;
  bool weights_stay = true;
};

MemoryLeft memory_left(const RootConfig& config, const ModelSizes& model, const BucketEstimate& sample,
                       const ModeEstimate& mode, const ScaleOptions& options) {
  const double free = double(usable_bytes(options.memory_bytes)) - double(mode.memory.total());
  const Gather gather = config.parallel.gather;
  if (mode.mode.sizes.state_ranks() == 1 || gather == Gather::kOnce) return {free, true};  // counted in mode.memory
  const double gathered = double(carried_width(config) * model.parameters);
  const model::PassShape pass{double(mode.share.micro), 1.0 / double(mode.mode.sizes.sequence), config.text.max_tokens};
  const double results = config.model.recompute == model::Recompute::kAuto
                             ? model::result_bytes(config.model, config.attention, sample.grid, pass)
                             : 0;
  if (gather == Gather::kAgain || !gathered_weights_stay(gathered, free, results)) return {free, false};
  return {free - gathered, true};
}

// With what a rank computes again.
ComputeCosts compute_costs(const RootConfig& config, const RunEstimate& run, const BucketEstimate& sample,
                           const ModeEstimate& mode, const MemoryLeft& left, const ScaleOptions& options) {
  const model::RecomputePlan plan =
      forecast_plan(config, sample.grid, mode.share.micro, 1.0 / double(mode.mode.sizes.sequence), left.bytes,
                    left.weights_stay);
  if (options.flops_per_s == 0) {
    const KernelRates rates = h200_rates();
    const StepSeconds seconds = sample_seconds(config, sample.grid, run.assumed_density, plan, rates);
    const double parts = config.lora.enabled() ? 1 : double(mode.mode.sizes.state_ranks());
    return {seconds.total(), seconds.backward, optimizer_seconds(config, rates) / parts};
  }
  const double backward = sample.backward / options.flops_per_s;
  if (config.model.recompute != model::Recompute::kAuto || sample.recomputed == 0)
    return {sample.flops_sparse / options.flops_per_s, backward, 0};
  const std::vector<model::ForwardWork> work =
      model::forward_work(config.model, config.attention, sample.grid, config.text.max_tokens, run.assumed_density);
  const double kept = sample.recomputed * (1 - recomputed_share(config, work, plan));
  return {(sample.flops_sparse - kept) / options.flops_per_s, backward, 0};
}

bool can_share_heads(RootConfig config, int64_t sequence) {
  config.parallel.sequence = sequence;
  try {
    dist::check_sequence(config);
  } catch (const Error&) {
    return false;
  }
  return true;
}

std::string sizes_text(const MeshSizes& sizes) {
  return fmt::format("{} x {} x {}", sizes.data, sizes.shard, sizes.sequence);
}

std::string row(const ModeEstimate& e, bool chosen, int64_t memory_bytes, bool batch_fits) {
  const RankMemory& m = e.memory;
  return fmt::format(
      "{} {:<28} {:>13} {:>8.2f} {:>8.2f} {:>8.2f} {:>8.2f} {:>8.2f} {:>8.2f} {:>8.2f} {:>4} {:>6}{} {:>6} {:>9.2f} "
      "{:>9.1f} {:>9.3f} {:>6.1f}%\n",
      chosen ? '*' : ' ', e.mode.name, sizes_text(e.mode.sizes), gib(m.total()), gib(m.weights), gib(m.gradients),
      gib(m.optimizer), gib(m.ema), gib(m.working), gib(m.activations), m.total() <= memory_bytes ? "yes" : "no",
      e.global_batch, batch_fits ? ' ' : '!', e.share.passes, gib(e.sent_bytes), 1e3 * e.waiting_s, e.step_s(),
      100 * e.efficiency());
}

}  // namespace

std::vector<Mode> possible_modes(const RootConfig& config, const ScaleOptions& options) {
  const int ranks = int(options.ranks), host = std::min(ranks, options.cluster.ranks_per_host);
  std::vector<Mode> out;
  for (int sequence = 1; sequence <= host; ++sequence) {
    if (ranks % sequence != 0 || host % sequence != 0 || !can_share_heads(config, sequence)) continue;
    const std::string with = sequence == 1 ? "" : fmt::format("sequence {}", sequence);
    const auto named = [&](const char* mode) { return with.empty() ? mode : fmt::format("{} + {}", mode, with); };
    const int groups = ranks / sequence, groups_of_host = host / sequence;
    out.push_back({with.empty() ? "data parallel" : with, {groups, 1, sequence}});
    if (groups_of_host > 1 && groups_of_host < groups && groups % groups_of_host == 0)
      out.push_back({named("hybrid"), {groups / groups_of_host, groups_of_host, sequence}});
    if (groups > 1) out.push_back({named("sharded"), {1, groups, sequence}});
  }
  return out;
}

ModeEstimate estimate_mode(const RootConfig& config, const RunEstimate& run, const Mode& mode,
                           const ScaleOptions& options) {
  const ModelSizes model = model_sizes(config);
  ModeEstimate out;
  out.mode = mode;
  const MeshSizes& sizes = mode.sizes;
  TrainConfig train = config.train;
  if (train.global_batch % sizes.batch_ranks() != 0)
    train.global_batch = next_multiple(train.global_batch, std::lcm(int64_t(sizes.batch_ranks()), train.micro_batch));
  out.global_batch = train.global_batch;
  out.share = dist::batch_share(train, sizes);
  out.memory = rank_memory(config, sizes, run.grid, out.share.micro);
  const BucketEstimate sample = costliest(run);
  const MemoryLeft left = memory_left(config, model, sample, out, options);
  const ComputeCosts costs_of_one = compute_costs(config, run, sample, out, left, options);
  const double samples = double(out.share.samples) / double(sizes.sequence), passes = double(out.share.passes);
  const double pass_s = samples * costs_of_one.sample / passes;
  out.compute_s = samples * costs_of_one.sample + costs_of_one.update;
  const auto add = [&](const PassCosts& costs, double count) {
    out.sent_bytes += count * costs.sent_bytes;
    out.waiting_s += count * costs.waiting_s;
  };
  if (sizes.state_ranks() > 1) {
    add(sharded_pass(config, model, sizes, options, pass_s, left.weights_stay, /*last_pass=*/false), passes - 1);
    add(sharded_pass(config, model, sizes, options, pass_s, left.weights_stay, /*last_pass=*/true), 1);
  }
  if (sizes.state_ranks() == 1 || config.lora.enabled()) {
    add(replicated_gradients(model, sizes, options, samples * costs_of_one.backward / passes), 1);
  }
  if (sizes.sequence > 1) add(sequence_pass(config, sizes, options, run.tokens(), out.share.micro), passes);
  return out;
}

std::string scale_to_text(const RootConfig& config, const RunEstimate& run, const ScaleOptions& options) {
  const MeshSizes wanted = dist::mesh_sizes(config.parallel, options.ranks);
  const auto same = [&](const Mode& mode) {
    return mode.sizes.data == wanted.data && mode.sizes.shard == wanted.shard && mode.sizes.sequence == wanted.sequence;
  };
  std::vector<Mode> modes = possible_modes(config, options);
  if (std::none_of(modes.begin(), modes.end(), same)) modes.push_back({"as configured", wanted});
  std::string text = fmt::format(
      "{} rank{}, {} per host; links {}\n{} assumed; samples of {} tokens; memory in GiB per rank of {:.0f}; * is what "
      "`parallel` asks for\n",
      options.ranks, options.ranks == 1 ? "" : "s", options.cluster.ranks_per_host, options.cluster.source,
      options.flops_per_s == 0 ? "kernels of an H200"
                               : fmt::format("{:.0f} TFLOP/s per rank", options.flops_per_s / 1e12),
      run.tokens(), gib(options.memory_bytes));
  text += fmt::format(
      "  {:<28} {:>13} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>4} {:>7} {:>6} {:>9} {:>9} {:>9} {:>7}\n", "mode",
      "data/shard/sq", "memory", "weights", "grads", "optim.", "EMA", "working", "activ.", "fits", "batch", "passes",
      "sent GiB", "wait ms", "step s", "effic.");
  std::string advice;
  for (const Mode& mode : modes) {
    const ModeEstimate e = estimate_mode(config, run, mode, options);
    const bool batch_fits = e.global_batch == config.train.global_batch;
    text += row(e, same(mode), options.memory_bytes, batch_fits);
    if (batch_fits) continue;
    const int64_t groups = mode.sizes.batch_ranks(), below = config.train.global_batch / groups * groups;
    const std::string note = fmt::format(
        "! {} groups of ranks take samples of their own: train.global_batch {} is no "
        "multiple; use {}{}\n",
        groups, config.train.global_batch, below > 0 ? fmt::format("{} or ", below) : "", below + groups);
    if (advice.find(note) == std::string::npos) advice += note;
  }
  return text + advice;
}

}  // namespace vmoba::train
