#include "train/forecast/pass_memory.h"

#include <algorithm>
#include <map>

#include "core/check.h"
#include "model/architecture.h"
#include "train/forecast/rank_memory.h"

namespace vmoba::train {
namespace {

// Rows of a block on one rank.
double rows_of(const model::BlockActivations& kind, const RootConfig& config, const PassPlace& pass) {
  const auto own = [&](int64_t tokens) { return (tokens + pass.sequence - 1) / pass.sequence; };
  const int64_t text = kind.with_text ? own(config.text.max_tokens) : 0;
  return double((own(pass.grid.tokens()) + text) * pass.micro);
}

double selection_of(const RootConfig& config, const PassPlace& pass, int64_t block, bool with_text) {
  const model::ModelConfig& m = config.model;
  const attention::LayerAttention layer = attention::layer_attention(config.attention, block, /*dense=*/false);
  const int64_t text = with_text ? config.text.max_tokens : 0, heads = m.heads / pass.sequence;
  return double(pass.micro) * attention::selection_bytes(layer, pass.grid, text, heads, m.head_dim);
}

// Bytes that model.recompute `attention` keeps of each block: the attended rows, and a log-sum-exp of each head.
std::vector<double> attention_results(const RootConfig& config, const PassPlace& pass, size_t blocks) {
  const model::ModelConfig& m = config.model;
  std::vector<double> out(blocks);
  if (m.recompute != model::Recompute::kAttention) return out;
  const model::RecomputePlan plan = model::recompute_plan(m);
  const double share = double(pass.micro) / double(pass.sequence), lse = double(sizeof(float)) * double(m.heads);
  std::map<std::string, size_t> number;  // of each block, in the order of computing
  for (const model::ForwardWork& work :
       model::forward_work(m, config.attention, pass.grid, config.text.max_tokens, /*density=*/1)) {
    const std::string block = model::block_of(model::architecture_of(m), work.result);
    if (block.empty()) continue;
    const size_t index = number.emplace(block, number.size()).first->second;
    if (plan.of_block(int64_t(index)).kept.contains(work.result.substr(block.size())))
      out.at(index) += share * work.rows * (double(compute_width(config)) * work.values + lse);
  }
  return out;
}

}  // namespace

std::vector<BlockMemory> block_memory(const RootConfig& config, const PassPlace& pass) {
  const double width = double(compute_width(config));
  const bool again = recomputes(config), away = model::offloads_activations(config.model.offload);
  std::vector<BlockMemory> out;
  for (const model::BlockActivations& kind : model::architecture_of(config.model).activations(config.model)) {
    const double rows = rows_of(kind, config, pass);
    const double input = width * rows * kind.input, kept = width * rows * kind.kept, peak = width * rows * kind.peak;
    for (int64_t i = 0; i < kind.blocks; ++i) {
      const double selection = selection_of(config, pass, int64_t(out.size()), kind.with_text);
      // Of inputs in the host's memory the present one and the next are on the device.
      const double held = away ? 0 : again ? input : kept + selection;
      out.push_back({held, (away ? 2 : 1) * input + peak + selection});
    }
  }
  // While their own block is at work, its results are among what it makes.
  const std::vector<double> results = attention_results(config, pass, out.size());
  for (size_t i = 0; i < out.size(); ++i) out[i].held += results[i];
  return out;
}

double block_input_bytes(const RootConfig& config, const PassPlace& pass) {
  double inputs = 0;
  for (const model::BlockActivations& kind : model::architecture_of(config.model).activations(config.model))
    inputs += double(kind.blocks * compute_width(config)) * kind.input * rows_of(kind, config, pass);
  return inputs;
}

double most_activations(const std::vector<BlockMemory>& blocks) {
  return most_with_gradients(blocks, std::vector<double>(blocks.size()));
}

double most_with_gradients(const std::vector<BlockMemory>& blocks, const std::vector<double>& gradients) {
  VMOBA_CHECK(blocks.size() == gradients.size(), "expected gradients of {} blocks, found {}", blocks.size(),
              gradients.size());
  double held = 0, made = 0, most = 0;
  for (const BlockMemory& block : blocks) held += block.held;
  for (size_t i = blocks.size(); i-- > 0; made += gradients[i]) {
    held -= blocks[i].held;
    most = std::max(most, held + blocks[i].busy + made);
  }
  return most;
}

}  // namespace vmoba::train
