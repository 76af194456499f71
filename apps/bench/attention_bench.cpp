#include "apps/bench/attention_bench.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAEvent.h>
#include <cuda_runtime_api.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <any>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "attention/dispatch.h"
#include "attention/method.h"
#include "attention/vmoba/config.h"
#include "core/check.h"
#include "model/weights/safetensors.h"

namespace vmoba::bench {
namespace {

using attention::BlockEngine;
using attention::BlockForward;
using attention::BlockProblem;
using attention::Selection;
using attention::VmobaConfig;

struct Tensors {
  at::Tensor q, k, v, dout;  // [B, Z, N, D] bf16
};

bool is_file(const std::string& inputs) {
  return inputs != "random" && inputs != "smooth";
}

// A gradient of standard normal values beside the file's tensors.
Tensors read_inputs(const std::string& path) {
  const model::SafetensorsFile file(path);
  const auto read = [&](const char* name) { return file.tensor(name).to(at::kCUDA, at::kBFloat16); };
  const at::Tensor q = read("q");
  return {q, read("k"), read("v"), at::randn_like(q)};
}

// Grid and sizes that a file states.
void take_sizes(BenchOptions& options) {
  const std::string& path = options.inputs;
  const model::SafetensorsFile file(path);
  const auto shape_of = [&](const char* name) {
    return file.contains(name) ? file.tensors().at(name).shape : std::vector<int64_t>();
  };
  const std::vector<int64_t> shape = shape_of("q");
  VMOBA_CHECK_INPUT(shape.size() == 4 && shape_of("k") == shape && shape_of("v") == shape,
                    "--inputs: expected q, k and v [B, S, N, D] of one shape in '{}', found [{}], [{}] and [{}]; "
                    "vmoba-analyze --save-qkv writes such files",
                    path, fmt::join(shape, ", "), fmt::join(shape_of("k"), ", "), fmt::join(shape_of("v"), ", "));
  const auto value = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  attention::Grid& grid = options.grid;
  int64_t text_tokens = 0;
  VMOBA_CHECK_INPUT(std::sscanf(value("grid").c_str(), "%ldx%ldx%ld", &grid.t, &grid.h, &grid.w) == 3 &&
                        std::sscanf(value("text_tokens").c_str(), "%ld", &text_tokens) == 1 && text_tokens >= 0 &&
                        std::min({grid.t, grid.h, grid.w}) >= 1 && grid.tokens() + text_tokens == shape[1],
                    "--inputs: expected metadata 'grid' (TxHxW) and 'text_tokens' of together {} tokens in '{}', found "
                    "'{}' and '{}'",
                    shape[1], path, value("grid"), value("text_tokens"));
  options.text_tokens = {text_tokens};
  options.batch = shape[0];
  options.heads = shape[2];
  options.head_dim = shape[3];
}

// Standard normal values; `smooth` adds a component that varies slowly over the grid to q and k of video tokens, so
// that near tokens like each other and lists become as skewed as in trained models.
Tensors make_inputs(const AttentionCase& c, const std::string& inputs) {
  if (is_file(inputs)) return read_inputs(inputs);
  const auto options = at::TensorOptions().device(at::kCUDA).dtype(at::kFloat);
  const attention::Grid& grid = c.grid;
  const auto draw = [&] { return at::randn({c.batch, c.tokens(), c.heads, c.head_dim}, options); };
  at::Tensor q = draw(), k = draw();
  if (inputs == "smooth") {
    const at::Tensor t = at::arange(grid.t, options).view({-1, 1, 1}) / double(grid.t);
    const at::Tensor h = at::arange(grid.h, options).view({1, -1, 1}) / double(grid.h);
    const at::Tensor w = at::arange(grid.w, options).view({1, 1, -1}) / double(grid.w);
    const at::Tensor frequency = at::randn({3, c.heads, c.head_dim}, options) * 3;
    const auto phase = [&](const at::Tensor& x, int64_t axis) {
      return x.expand({grid.t, grid.h, grid.w}).reshape({1, grid.tokens(), 1, 1}) * frequency[axis];
    };
    const at::Tensor position = at::cos(phase(t, 0) + phase(h, 1) + phase(w, 2));
    q.slice(1, 0, grid.tokens()).add_(position);
    k.slice(1, 0, grid.tokens()).add_(position);
  }
  return {q.to(at::kBFloat16), k.to(at::kBFloat16), draw().to(at::kBFloat16), draw().to(at::kBFloat16)};
}

// GPU times of stages that follow each other on the current stream.
class StageTimer {
 public:
  void stage(const std::function<void()>& work) {
    if (events_.empty()) record();
    work();
    record();
  }
  // Waits for the last stage.
  std::vector<double> milliseconds() const {
    events_.back()->synchronize();
    std::vector<double> out;
    for (size_t i = 0; i + 1 < events_.size(); ++i) out.push_back(events_[i]->elapsed_time(*events_[i + 1]));
    return out;
  }

 private:
  void record() {
    events_.push_back(std::make_unique<c10::cuda::CUDAEvent>(cudaEventDefault));
    events_.back()->record();
  }
  std::vector<std::unique_ptr<c10::cuda::CUDAEvent>> events_;
};

Spread spread_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front(), samples.back()};
}

at::Tensor heads_first(const at::Tensor& x_BSND) {
  return x_BSND.transpose(1, 2);
}

// cuDNN's attention, as the `full` backend calls it through libtorch.
struct FullAttention {
  at::Tensor q, k, v, out, lse, seed, offset, dout;
  c10::SymInt max_q, max_k;
  at::Tensor cum_q, cum_k, debug;

  explicit FullAttention(const Tensors& t)
      : q(heads_first(t.q)), k(heads_first(t.k)), v(heads_first(t.v)), dout(heads_first(t.dout)) {}
  void forward() {
    std::tie(out, lse, cum_q, cum_k, max_q, max_k, seed, offset, debug) =
        at::_scaled_dot_product_cudnn_attention(q, k, v, std::nullopt, /*compute_log_sumexp=*/true);
  }
  void backward() {
    at::_scaled_dot_product_cudnn_attention_backward_symint(dout, q, k, v, out, lse, seed, offset, at::Tensor(), cum_q,
                                                            cum_k, max_q, max_k, 0.0, false);
  }
};

// The means of blocks that queries do not attend, as further keys of one head.
struct MeanKeys {
  at::Tensor keys_CD, values_CD, bias_C;

  MeanKeys(const attention::PartitionTables& tables, const at::Tensor& keys_ZD, const at::Tensor& values_ZD)
      : bias_C(tables.block_tokens_C.log().to(at::kFloat)) {
    const auto means = [&](const at::Tensor& x_ZD) {
      const at::Tensor sum_CD = at::zeros({tables.blocks, x_ZD.size(1)}, x_ZD.options().dtype(at::kDouble));
      const at::Tensor video_SD = x_ZD.slice(0, 0, tables.tokens).to(at::kDouble);
      return (sum_CD.index_add(0, tables.block_of_S, video_SD) / tables.block_tokens_C.unsqueeze(1)).to(at::kFloat);
    };
    keys_CD = means(keys_ZD);
    values_CD = means(values_ZD);
  }
};

bool has_remainder(const BlockProblem& problem) {
  const auto* rule = std::any_cast<attention::VmobaRule>(&problem.layer.rule);
  return rule != nullptr && rule->remainder != attention::Remainder::kNone;
}

bool means_are_parts_of_blocks(const BlockProblem& problem) {
  return has_remainder(problem) &&
         attention::vmoba_rule(problem.layer).remainder_block != std::array<int64_t, 3>{0, 0, 0};
}

// Largest difference to fp32 attention over the same mask, relative to the largest value, on 256 queries of each head;
// -1 (not compared) for means of parts of blocks.
double subsample_error(const BlockProblem& problem, const Tensors& t, const BlockForward& forward) {
  if (means_are_parts_of_blocks(problem)) return -1;
  const attention::PartitionTables& tables = *problem.tables;
  const int64_t tokens = t.q.size(1), step = std::max<int64_t>(1, tokens / 256);
  const at::Tensor positions = at::arange(0, tokens, step, t.q.options().dtype(at::kLong));
  const at::Tensor order = attention::token_order_Z(tables, problem.text_tokens);
  const at::Tensor text_block = at::full({problem.text_tokens}, tables.blocks, order.options());
  const at::Tensor block_of = at::cat({tables.block_of_S.to(at::kLong), text_block});
  const at::Tensor rows = order.index_select(0, positions);
  const at::Tensor mask_BNER =
      with_words(problem, forward.selection.mask).attends_BNEZ(tokens).index_select(3, positions);
  double worst = 0, largest = 0;
  for (int64_t b = 0; b < t.q.size(0); ++b) {
    for (int64_t n = 0; n < t.q.size(2); ++n) {
      at::Tensor keys = t.k[b].select(1, n).to(at::kFloat).index_select(0, order);
      at::Tensor values = t.v[b].select(1, n).to(at::kFloat).index_select(0, order);
      const at::Tensor queries = t.q[b].select(1, n).to(at::kFloat).index_select(0, rows);
      at::Tensor allowed = mask_BNER[b][n].transpose(0, 1).index_select(1, block_of);
      at::Tensor bias;
      if (has_remainder(problem)) {
        const MeanKeys means(tables, keys, values);
        keys = at::cat({keys, means.keys_CD});
        values = at::cat({values, means.values_CD});
        bias = at::constant_pad_nd(means.bias_C, {tokens, 0});
        allowed = at::cat({allowed, ~mask_BNER[b][n].slice(0, 0, tables.blocks).transpose(0, 1)}, 1);
      }
      at::Tensor scores = at::mm(queries, keys.t()) / std::sqrt(double(t.q.size(3)));
      if (bias.defined()) scores = scores + bias;
      scores = scores.masked_fill(~allowed, -INFINITY);
      const at::Tensor expected = at::mm(at::softmax(scores, 1), values);
      const at::Tensor found = forward.attended.out_BZND[b].select(1, n).index_select(0, rows).to(at::kFloat);
      worst = std::max(worst, (found - expected).abs().max().item<double>());
      largest = std::max(largest, expected.abs().max().item<double>());
    }
  }
  return worst / largest;
}

int64_t current_bytes() {
  return c10::cuda::CUDACachingAllocator::getDeviceStats(0)
      .allocated_bytes[size_t(c10::CachingAllocator::StatType::AGGREGATE)]
      .current;
}

double density_of(const BlockProblem& problem, const Tensors& t, const BlockEngine& engine) {
  const double pairs = block_forward(engine, problem, t.q, t.k, t.v).pairs_N.sum().item<double>();
  return pairs / (double(t.q.size(0) * t.q.size(2)) * double(t.q.size(1)) * double(t.q.size(1)));
}

// The threshold at which the density is within 2 % of the wished one (it grows with tau).
double find_tau(BlockProblem problem, const Tensors& t, const BlockEngine& engine, double density) {
  double& tau = vmoba_rule(problem.layer).tau;
  double low = 0, high = 1;
  for (int round = 0; round < 20; ++round) {
    tau = (low + high) / 2;
    const double found = density_of(problem, t, engine);
    if (std::abs(found / density - 1) < 0.02) break;
    (found < density ? low : high) = tau;
  }
  return tau;
}

std::vector<AttentionCase> cases_of(BenchOptions o) {
  if (is_file(o.inputs)) take_sizes(o);
  VMOBA_CHECK_INPUT(o.text_tokens.size() == 1 || int64_t(o.text_tokens.size()) == o.batch,
                    "--text-tokens: expected one number, or one for each of {} samples (--batch), found {}", o.batch,
                    fmt::join(o.text_tokens, " "));
  const int64_t text_tokens = *std::max_element(o.text_tokens.begin(), o.text_tokens.end());
  const std::vector<int64_t> lengths = o.text_tokens.size() == 1 ? std::vector<int64_t>() : o.text_tokens;
  VMOBA_CHECK_INPUT(
      o.named_case.empty() || !is_file(o.inputs),
      "--inputs: expected random or smooth with --case, found the file '{}', which states sizes of its own", o.inputs);
  if (!o.named_case.empty()) return {find_case(o.named_case)};
  std::vector<AttentionCase> out;
  for (const std::string& partition : o.partitions) {
    attention::AttentionConfig config = o.attention;
    VmobaConfig& vmoba = config.part<VmobaConfig>();
    vmoba.temporal_layers = partition == "temporal";
    vmoba.spatial_layers = partition == "spatial";
    vmoba.spatiotemporal_layers = partition == "spatiotemporal";
    out.push_back({partition, o.grid, attention::layer_attention(config, 0, false), text_tokens, o.batch, o.heads,
                   o.head_dim, lengths});
  }
  return out;
}

// Nothing waits for the GPU between the rounds, as in training: the times are those of a stream that is never idle.
void measure_times(const BenchOptions& o, const BlockProblem& problem, const Tensors& t, const BlockEngine& engine,
                   BenchCase& out) {
  FullAttention full(t);
  std::vector<StageTimer> rounds(size_t(o.warmup + o.repeats));
  for (StageTimer& round : rounds) {
    Selection selection;
    BlockForward result;
    round.stage([&] { selection = block_select(engine, problem, t.q, t.k, t.v); });
    round.stage([&] { result = block_attend(engine, problem, t.q, t.k, t.v, std::move(selection)); });
    round.stage([&] { block_backward(engine, problem, t.q, t.k, t.v, result, t.dout); });
    round.stage([&] { full.forward(); });
    round.stage([&] { full.backward(); });
  }
  std::vector<double> select, forward, backward, total, full_forward, full_total;
  for (size_t i = size_t(o.warmup); i < rounds.size(); ++i) {
    const std::vector<double> ms = rounds[i].milliseconds();
    const double select_ms = ms[0], attend_ms = ms[1], backward_ms = ms[2], full_forward_ms = ms[3],
                 full_backward_ms = ms[4];
    select.push_back(select_ms);
    forward.push_back(select_ms + attend_ms);
    backward.push_back(backward_ms);
    total.push_back(select_ms + attend_ms + backward_ms);
    full_forward.push_back(full_forward_ms);
    full_total.push_back(full_forward_ms + full_backward_ms);
  }
  out.select_ms = spread_of(select);
  out.forward_ms = spread_of(forward);
  out.backward_ms = spread_of(backward);
  out.total_ms = spread_of(total);
  out.full_forward_ms = spread_of(full_forward);
  out.full_total_ms = spread_of(full_total);
}

// Samples whose texts are of different lengths, as models attend them.
BenchCase bench_samples(const BenchOptions& o, const AttentionCase& c, const Tensors& t) {
  const at::AutoGradMode gradients(true);
  const at::Tensor q = t.q.detach().requires_grad_(), k = t.k.detach().requires_grad_(),
                   v = t.v.detach().requires_grad_();
  attention::AttentionStats stats;
  const auto forward = [&](attention::AttentionStats* record) {
    return attention::self_attention(q, k, v, c.grid, c.text_tokens, c.layer, record, c.text_lengths);
  };
  BenchCase out;
  out.partition = c.name;
  out.inputs = o.inputs;
  out.blocks = attention::block_count(c.grid, c.layer);
  out.tokens = c.tokens();
  out.relative_error = -1;
  c10::cuda::CUDACachingAllocator::emptyCache();
  c10::cuda::CUDACachingAllocator::resetPeakStats(0);
  const int64_t before = current_bytes();
  torch::autograd::grad({forward(&stats)}, {q, k, v}, {t.dout});
  out.extra_bytes = peak_bytes() - before - 4 * int64_t(t.q.nbytes());
  out.density = stats.densities()["all"];
  std::vector<double> forwards, backwards, totals;
  for (int64_t round = 0; round < o.warmup + o.repeats; ++round) {
    StageTimer timer;
    at::Tensor result;
    timer.stage([&] { result = forward(nullptr); });
    timer.stage([&] { torch::autograd::grad({result}, {q, k, v}, {t.dout}); });
    const std::vector<double> ms = timer.milliseconds();
    if (round < o.warmup) continue;
    forwards.push_back(ms[0]);
    backwards.push_back(ms[1]);
    totals.push_back(ms[0] + ms[1]);
  }
  out.forward_ms = spread_of(forwards);
  out.backward_ms = spread_of(backwards);
  out.total_ms = spread_of(totals);
  double flops = 0;
  for (const int64_t text : c.text_lengths)
    flops += attention::attention_flops(c.grid.tokens() + text, c.heads, c.head_dim, out.density, 0);
  out.forward_tflops = flops / (out.forward_ms.median * 1e9);
  out.backward_tflops = 2.5 * flops / (out.backward_ms.median * 1e9);
  return out;
}

BenchCase bench_case(const BenchOptions& o, const AttentionCase& c) {
  at::manual_seed(0);
  const Tensors t = make_inputs(c, o.inputs);
  if (!c.text_lengths.empty()) return bench_samples(o, c, t);
  BlockProblem problem = attention::make_block_problem(t.q, c.grid, c.text_tokens, c.layer);
  problem.layer.implementation = o.attention.implementation;
  const BlockEngine& engine = attention::block_engine(problem.layer, t.q);
  auto* rule = std::any_cast<attention::VmobaRule>(&problem.layer.rule);  // null: another method's case
  VMOBA_CHECK_INPUT(rule != nullptr || o.density == 0,
                    "--density searches VMoBA's tau: expected a case of vmoba, found one of {}; leave --density out",
                    problem.layer.method->name);
  if (o.density > 0) rule->tau = find_tau(problem, t, engine, o.density);
  BenchCase out;
  out.partition = c.name;
  out.inputs = o.inputs;
  out.blocks = problem.tables->blocks;
  out.tokens = c.tokens();
  if (rule != nullptr) out.tau = rule->tau;

  // Memory: what a forward and backward need above inputs, output and gradients.
  c10::cuda::CUDACachingAllocator::emptyCache();
  c10::cuda::CUDACachingAllocator::resetPeakStats(0);
  const int64_t before = current_bytes();
  {
    const BlockForward result = block_forward(engine, problem, t.q, t.k, t.v);
    block_backward(engine, problem, t.q, t.k, t.v, result, t.dout);
    out.extra_bytes = peak_bytes() - before - 4 * int64_t(t.q.nbytes());
    const double all = double(c.batch * c.heads) * double(out.tokens) * double(out.tokens);
    out.density = result.pairs_N.sum().item<double>() / all;
    out.relative_error = o.check ? subsample_error(problem, t, result) : -1;
  }
  measure_times(o, problem, t, engine, out);
  const double flops = attention::attention_flops(out.tokens, c.heads, c.head_dim, out.density, 0) * double(c.batch);
  out.forward_tflops = flops / (out.forward_ms.median * 1e9);
  out.backward_tflops = 2.5 * flops / (out.backward_ms.median * 1e9);
  return out;
}

nlohmann::json to_json(const Spread& s) {
  return {{"median", s.median}, {"min", s.min}, {"max", s.max}};
}

}  // namespace

std::vector<BenchCase> bench_attention(const BenchOptions& options) {
  VMOBA_CHECK_INPUT(at::globalContext().hasCUDA(), "vmoba-bench attention: expected a CUDA GPU, found none");
  const at::NoGradGuard no_grad;
  std::vector<BenchCase> out;
  for (const AttentionCase& c : cases_of(options)) out.push_back(bench_case(options, c));
  return out;
}

int64_t peak_bytes() {
  return c10::cuda::CUDACachingAllocator::getDeviceStats(0)
      .allocated_bytes[size_t(c10::CachingAllocator::StatType::AGGREGATE)]
      .peak;
}

double median_milliseconds(const std::function<void()>& work, int64_t repeats) {
  for (int i = 0; i < 2; ++i) work();
  StageTimer timer;
  for (int64_t i = 0; i < repeats; ++i) timer.stage(work);
  return spread_of(timer.milliseconds()).median;
}

void print_bench(const std::vector<BenchCase>& cases) {
  std::cout << fmt::format(
      "{:<15} {:>6} {:>7} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8}\n", "partition",
      "blocks", "tokens", "density", "tau", "select", "fwd", "bwd", "total", "full fwd", "full tot", "x fwd", "x tot",
      "GiB", "rel err");
  for (const BenchCase& c : cases)
    std::cout << fmt::format(
        "{:<15} {:>6} {:>7} {:>7.3f} {:>7.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>7.2f} {:>7.2f} "
        "{:>8.2f} {:>8.1e}   spread total {:.2f}..{:.2f}, full {:.2f}..{:.2f}; fwd {:.0f} TF/s, bwd {:.0f} TF/s\n",
        c.partition, c.blocks, c.tokens, c.density, c.tau, c.select_ms.median, c.forward_ms.median,
        c.backward_ms.median, c.total_ms.median, c.full_forward_ms.median, c.full_total_ms.median,
        c.full_forward_ms.median / c.forward_ms.median, c.full_total_ms.median / c.total_ms.median,
        double(c.extra_bytes) / (1 << 30), c.relative_error, c.total_ms.min, c.total_ms.max, c.full_total_ms.min,
        c.full_total_ms.max, c.forward_tflops, c.backward_tflops);
}

std::string bench_to_json(const std::vector<BenchCase>& cases) {
  nlohmann::json list = nlohmann::json::array();
  for (const BenchCase& c : cases)
    list.push_back({{"partition", c.partition},
                    {"inputs", c.inputs},
                    {"blocks", c.blocks},
                    {"tokens", c.tokens},
                    {"tau", c.tau},
                    {"density", c.density},
                    {"select_ms", c.select_ms.median},
                    {"fwd_ms", c.forward_ms.median},
                    {"bwd_ms", c.backward_ms.median},
                    {"total_ms", c.total_ms.median},
                    {"full_fwd_ms", c.full_forward_ms.median},
                    {"full_total_ms", c.full_total_ms.median},
                    {"extra_bytes", c.extra_bytes},
                    {"rel_err", c.relative_error},
                    {"spread", {{"total_ms", to_json(c.total_ms)}, {"full_total_ms", to_json(c.full_total_ms)}}}});
  cudaDeviceProp properties{};
  cudaGetDeviceProperties(&properties, 0);
  return nlohmann::json{{"gpu", properties.name}, {"commit", VMOBA_COMMIT}, {"cases", list}}.dump(2) + "\n";
}

}  // namespace vmoba::bench
