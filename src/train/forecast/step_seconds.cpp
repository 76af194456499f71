#include "train/forecast/step_seconds.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "attention/kernel_work.h"
#include "core/check.h"
#include "model/architecture.h"
#include "model/common/fp8_linear.h"
#include "train/forecast/memory_advice.h"
#include "train/forecast/rank_memory.h"
#include "train/forecast/step_flops.h"

namespace vmoba::train {
namespace {

constexpr double kAttentionBackward = 2.5;  // of forward's FLOPs
// Passes over q that tiles and lists cost beside the pairs: copies in the order of blocks, means, results brought back.
// What remains of 6.9 and 28.3 ms where the density goes to 0 (docs/benchmarks.md, cubes of 64).
constexpr double kBesideForward = 16, kBesideBackward = 14;
// Bytes of a value on its way into the compute dtype, read and written: of fp32, of fp8 and packed ones.
constexpr double kCastBytes = 6, kUnpackBytes = 3;
// Values that an adapter of a map moves for each of the map's inputs and outputs: rank is small against both.
constexpr double kAdapterForward = 1.5, kAdapterBackward = 2.5;

double round_up(double value, double of) {
  return std::ceil(value / of) * of;
}

// Attention of tokens among themselves in one layer.
struct Place {
  const RootConfig& config;
  const KernelRates& rates;
  const attention::Grid& grid;
  double density;
};

struct Pair {
  double forward = 0, backward = 0;
};

// `flops`: of forward, text among them.
Pair attention_seconds(const Place& p, const attention::LayerAttention& layer, double flops) {
  using attention::KernelKind;
  const auto at = [&](const KernelRates::Attention& rates, double padding) {
    const KernelRates::Pairs rate = rates.at(p.grid.tokens());
    return Pair{padding * flops / rate.forward, padding * kAttentionBackward * flops / rate.backward};
  };
  const model::ModelConfig& m = p.config.model;
  const attention::KernelWork work = attention::kernel_work(layer, p.grid, 0);
  if (work.kind == KernelKind::kFull) {
    const double of_video = attention::layer_flops(layer, p.grid, m.heads, m.head_dim, p.density);
    flops += attention::attention_flops(p.grid.tokens(), m.heads, m.head_dim, 1, 0) - of_video;
    return at(m.head_dim <= 64 ? p.rates.full_narrow : p.rates.full, 1);
  }
  const bool tiles = work.kind == KernelKind::kTiles;
  // Queries in tiles of 64, keys in steps of 8: the last of a block is padded, and blocks at the grid's end are
  // smaller.
  const double keys = double(work.block_tokens), queries = double(work.tile_tokens);
  const double smaller = double(p.grid.tokens()) / (double(work.blocks) * keys);
  const double padding = tiles ? round_up(queries, 64) / queries * round_up(keys, 8) / keys / (smaller * smaller) : 1;
  Pair out = at(!tiles ? p.rates.rows : queries <= 64 ? p.rates.pieces : p.rates.pairs, padding);
  const double values = double(p.grid.tokens() * m.heads * m.head_dim);
  out.forward += kBesideForward * 2 * values / p.rates.bytes;
  out.backward += kBesideBackward * 2 * values / p.rates.bytes;
  if (tiles) out.forward += double(m.heads) * double(p.grid.tokens()) / queries * double(work.blocks) / p.rates.cells;
  return out;
}

// Results are made in tiles of 128 x 256, one on each of 132 multiprocessors at a time: what the last, unfilled round
// of them costs, relative to the rounds of 55,296 rows.
double wave_cost(const model::ForwardWork& piece) {
  constexpr double kProcessors = 132, kUsual = 20 / 19.6;
  if (piece.values == 0) return 1;
  const double tiles = std::ceil(piece.rows / 128) * std::ceil(piece.values / 256);
  return round_up(tiles, kProcessors) / tiles / kUsual;
}

double cast_bytes(const RootConfig& config) {
  const std::string& kept = config.model.weights_dtype;
  if (kept == config.model.compute_dtype) return 0;
  return kept == "packed" || kept == "fp8" ? kUnpackBytes : kCastBytes;
}

class Sum {
 public:
  Sum(const RootConfig& config, const model::RecomputePlan& plan)
      : plan_(plan), architecture_(model::architecture_of(config.model)) {}

  struct Piece {
    double forward = 0, backward = 0;
  };
  // `kept`: whether backward has its result.
  void add(double StepSeconds::*kind, const Piece& piece, bool again) {
    const double twice = again ? piece.forward : 0;
    seconds_.*kind += piece.forward + piece.backward + twice;
    seconds_.again += twice;
    seconds_.backward += piece.backward + twice;
  }
  // The number of the block that a piece belongs to; -1 outside the blocks.
  int64_t block_of(const model::ForwardWork& piece) {
    const std::string& name = piece.result.empty() ? piece.module : piece.result;
    block_ = model::block_of(architecture_, name);
    if (block_.empty()) return -1;
    return number_.emplace(block_, int64_t(number_.size())).first->second;
  }
  // The name of a piece's result within its block.
  std::string name_of(const model::ForwardWork& piece) const {
    return piece.result.empty() ? "" : piece.result.substr(block_.size());
  }
  bool again(int64_t block, const model::ForwardWork& piece) const {
    if (block < 0) return false;
    const model::RecomputePolicy policy = plan_.of_block(block);
    return policy.enabled && (piece.result.empty() || !policy.kept.contains(name_of(piece)));
  }
  const StepSeconds& seconds() const { return seconds_; }

 private:
  const model::RecomputePlan& plan_;
  const model::Architecture& architecture_;
  std::map<std::string, int64_t> number_;
  std::string block_;
  StepSeconds seconds_;
};

// What norms, residuals and so on move, block by block.
void add_moved(const RootConfig& config, const attention::Grid& grid, const model::RecomputePlan& plan,
               const KernelRates& rates, Sum& sum) {
  const double width = double(compute_width(config));
  int64_t block = 0;
  for (const model::BlockActivations& kind : model::architecture_of(config.model).activations(config.model)) {
    const double rows = double(grid.tokens() + (kind.with_text ? config.text.max_tokens : 0));
    for (int64_t i = 0; i < kind.blocks; ++i, ++block) {
      const bool again = plan.of_block(block).enabled;
      sum.add(&StepSeconds::moved,
              {width * rows * kind.moved_forward / rates.bytes, width * rows * kind.moved_backward / rates.bytes},
              again);
      sum.add(&StepSeconds::gaps, {rates.gaps / 3, rates.gaps * 2 / 3}, again);
    }
  }
}

}  // namespace

KernelRates::Pairs KernelRates::Attention::at(int64_t tokens) const {
  constexpr double kFew = 55296, kMany = 118800;
  const double share = std::clamp((double(tokens) - kFew) / (kMany - kFew), 0.0, 1.0);
  return {few.forward + share * (many.forward - few.forward), few.backward + share * (many.backward - few.backward)};
}

KernelRates h200_rates() {
  KernelRates out{};
  // The profile of a step at 55,296 tokens: 603 ms for 415 TFLOP of products, 86 ms for 18 of cross attention, 15 of
  // 1,218 ms idle, 30 blocks.
  out.products = 690e12;
  // "Products in fp8": 288 ms of a step for the same.
  out.fp8_products = 1440e12;
  out.few_keys = 212e12;
  out.gaps = 15e-3 / 30;
  // "55,296 tokens": 29.6 of 117.4 ms, and 40.7 of 142.8 with heads of 64, for 18.8 TFLOP forward. "118,800 tokens":
  // 311 of 1,128 ms for 173.
  out.full = {{634e12, 537e12}, {557e12, 530e12}};
  out.full_narrow = {{462e12, 460e12}, {462e12, 460e12}};
  // "Density", 64 blocks: from 0.05 to 0.4 forward grows by 12.55 ms and both by 44.3, which is 36 and 127 ms for all
  // pairs; as fast with 110,592 tokens. "Small cubes that choose together", from 5 to 20 %: cubes of 64 by 4.61 and
  // 20.2, of 128 by 4.41 and 16.2. "118,800 tokens", from 5 to 20 %: cubes of 60 by 58.7 and 188, of 120 by 50.5 and
  // 147, rows and keys that fill up to 64, 8 and 128 counted in.
  out.rows = {{522e12, 517e12}, {522e12, 517e12}};
  out.pieces = {{612e12, 452e12}, {504e12, 394e12}};
  out.pairs = {{639e12, 598e12}, {546e12, 468e12}};
  // "Kernels of tiles alone": copies and means at 3.6 TB/s, as the norms of a step; the choice of 864 cubes among 864
  // and its lists in 0.14 ms for 12 heads.
  out.bytes = 3.6e12;
  out.cells = 12 * 864.0 * 864 / 0.14e-3;
  // "Cubes, optimisers and fp8": 54 TFLOP in 0.17 s.
  out.muon = 320e12;
  return out;
}

StepSeconds sample_seconds(const RootConfig& config, const attention::Grid& grid, double density,
                           const model::RecomputePlan& plan, const KernelRates& rates) {
  const std::map<std::string, int64_t> adapters = adapters_of(config);
  const bool frozen = config.lora.enabled();
  const model::ModelConfig& m = config.model;
  const Place place{config, rates, grid, density};
  const double width = double(compute_width(config)), cast = cast_bytes(config);
  bool reached = !frozen;
  int64_t attended = -1;  // the last block whose tokens have attended to each other
  Sum sum(config, plan);
  for (const model::ForwardWork& piece :
       model::forward_work(m, config.attention, grid, config.text.max_tokens, density)) {
    const int64_t block = sum.block_of(piece);
    const bool again = sum.again(block, piece) && reached;
    if (piece.module.empty()) {
      const bool self = block > attended;
      attended = std::max(attended, block);
      const Pair seconds =
          self ? attention_seconds(place, attention::layer_attention(config.attention, block, false), piece.flops)
               : Pair{piece.flops / rates.few_keys, kAttentionBackward * piece.flops / rates.few_keys};
      sum.add(self ? &StepSeconds::attention : &StepSeconds::few_keys,
              {seconds.forward, reached ? seconds.backward : 0}, again);
      continue;
    }
    const auto found = adapters.find(piece.module);
    const bool adapted = found != adapters.end();
    reached |= adapted;
    const double gradients = !reached ? 0 : !frozen ? 2 : piece.on_tokens ? 1 : 0;
    const std::string name = sum.name_of(piece);
    const bool fp8 = !name.empty() && model::asks_for_fp8(m, name);  // maps without a kept result are few rows
    const double once = piece.flops * wave_cost(piece) / (fp8 ? rates.fp8_products : rates.products);
    sum.add(&StepSeconds::products, {once, gradients * once}, again);
    const double values = piece.rows > 0 ? piece.flops / (2 * piece.rows) : 0;
    sum.add(&StepSeconds::weights, {cast * values / rates.bytes, 0}, again);
    if (!adapted) continue;
    const double moved = width * piece.rows * double(found->second) / double(config.lora.rank) / rates.bytes;
    sum.add(&StepSeconds::moved, {kAdapterForward * moved, kAdapterBackward * moved}, again);
  }
  add_moved(config, grid, plan, rates, sum);
  return sum.seconds();
}

double optimizer_seconds(const RootConfig& config, const KernelRates& rates) {
  const ModelSizes sizes = model_sizes(config);
  const bool lora = config.lora.enabled(), narrow = !lora && config.model.weights_dtype == "bf16";
  const double weight = narrow ? 2 : 4, moments = config.train.optimizer.type == "adamw_8bit" ? 2 : 8;
  // The gradient is read for its norm and for the update, and set to zero; the rest is read and written.
  const double bytes = 3 * weight + 2 * (weight + moments) + (config.train.ema.enabled ? 8 + weight : 0);
  double out = bytes * double(sizes.trainable) / rates.bytes;
  if (config.train.optimizer.type != "muon" || lora) return out;
  // Five rounds of X X^T, its square and a product with X, for each matrix of a block.
  for (const model::Parameter& p : model::parameter_shapes(config.model)) {
    if (p.shape().size() != 2 || model::block_of(model::architecture_of(config.model), p.name).empty()) continue;
    const double few = double(std::min(p.shape()[0], p.shape()[1])),
                 many = double(std::max(p.shape()[0], p.shape()[1]));
    out += 5 * (4 * few * few * many + 2 * few * few * few) / rates.muon;
  }
  return out;
}

model::RecomputePlan forecast_plan(const RootConfig& config, const attention::Grid& grid, int64_t micro, double share,
                                   double free_bytes, bool weights_stay) {
  if (config.model.recompute != model::Recompute::kAuto) return model::recompute_plan(config.model);
  const bool whole = weights_stay && config.model.offload == model::Offload::kNone;
  const model::PassShape pass{double(micro), share, config.text.max_tokens, whole};
  return model::fit_plan(config.model, config.attention, grid, pass, std::max(0.0, free_bytes)).plan;
}

std::string time_to_text(const RootConfig& config, const RunEstimate& run, int64_t gpu_bytes) {
  constexpr int64_t kH200Bytes = 150'109'880'320;  // as CUDA tells it, 139.8 GiB
  const KernelRates rates = h200_rates();
  const double samples = double(config.train.global_batch), update = optimizer_seconds(config, rates);
  const double free = double(usable_bytes(gpu_bytes > 0 ? gpu_bytes : kH200Bytes)) - double(run.total_bytes());
  std::string text;
  for (const BucketEstimate& bucket : run.buckets) {
    const model::RecomputePlan plan = forecast_plan(config, bucket.grid, config.train.micro_batch, 1, free);
    const StepSeconds one = sample_seconds(config, bucket.grid, run.assumed_density, plan, rates);
    text += fmt::format(
        "time of a step       {:.3g} s on an H200 for {} tokens a sample: products {:.3g}, attention {:.3g}, attention "
        "to conditions {:.2g}, values moved {:.2g}, weights converted {:.2g}, gaps {:.2g}, optimizer {:.2g}; {:.0f} % "
        "of it computes again\n",
        samples * one.total() + update, bucket.grid.tokens(), samples * one.products, samples * one.attention,
        samples * one.few_keys, samples * one.moved, samples * one.weights, samples * one.gaps, update,
        100 * one.again / one.total());
  }
  if (gpu_bytes == 0 && config.model.recompute == model::Recompute::kAuto)
    text += "                     with model.recompute auto in the memory of an H200\n";
  return text;
}

}  // namespace vmoba::train
