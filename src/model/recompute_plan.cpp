#include "model/recompute_plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "model/architecture.h"
#include "model/common/dtype.h"

namespace vmoba::model {
namespace {

// Attention runs at a lower rate than matrix products and brings its selection with it.
constexpr double kAttentionCost = 1.5;

struct Candidate {
  std::string name;  // within its block
  double bytes = 0, work = 0;
  bool attention = false;
  double worth() const { return work / bytes; }
};

// Of each block, in the order of computing.
std::vector<std::vector<Candidate>> candidates(const ModelConfig& config, const attention::AttentionConfig& attention,
                                               const attention::Grid& grid, const PassShape& pass) {
  const Architecture& architecture = architecture_of(config);
  const double width = double(c10::elementSize(scalar_type(config.compute_dtype)));
  const double density = attention::expected_density(attention, grid, layer_count(config));
  std::map<std::string, size_t> number;
  std::vector<std::vector<Candidate>> out;
  for (const ForwardWork& work : forward_work(config, attention, grid, pass.text_tokens, density)) {
    const std::string block = block_of(architecture, work.result);
    if (block.empty()) continue;
    const auto [found, added] = number.emplace(block, out.size());
    if (added) out.emplace_back();
    const double times = pass.samples * pass.share;
    out[found->second].push_back({work.result.substr(block.size()), width * work.rows * work.values * times,
                                  work.flops * times * (work.module.empty() ? kAttentionCost : 1),
                                  work.module.empty()});
  }
  return out;
}

// Bytes of each block without recomputing, beyond its input.
std::vector<double> whole_block_bytes(const ModelConfig& config, const attention::AttentionConfig& attention,
                                      const attention::Grid& grid, const PassShape& pass) {
  const double width = double(c10::elementSize(scalar_type(config.compute_dtype)));
  std::vector<double> out;
  for (const BlockActivations& kind : architecture_of(config).activations(config)) {
    const int64_t text = kind.with_text ? pass.text_tokens : 0;
    for (int64_t i = 0; i < kind.blocks; ++i) {
      const attention::LayerAttention layer = attention::layer_attention(attention, int64_t(out.size()), false);
      const double selection = attention::selection_bytes(layer, grid, text, config.heads, config.head_dim);
      // Ranks that share a sample keep attention's result twice: of their heads and, sent back, of their tokens.
      const double sent_back = pass.share < 1 ? double(config.heads * config.head_dim) : 0;
      const double values = width * (kind.kept - kind.input + sent_back) * double(grid.tokens() + text);
      out.push_back((values + selection) * pass.samples * pass.share);
    }
  }
  return out;
}

RecomputePlan every_block(const ModelConfig& config, const RecomputePolicy& policy) {
  return RecomputePlan(std::vector<RecomputePolicy>(size_t(layer_count(config)), policy));
}

// The names of self attention's results.
std::set<std::string> attention_results(const ModelConfig& config) {
  // The order of work does not depend on sizes: those of a small clip do.
  std::set<std::string> out;
  for (const std::vector<Candidate>& block : candidates(config, {}, {1, 1, 1}, {}))
    for (const Candidate& candidate : block)
      if (candidate.attention) {
        out.insert(candidate.name);
        break;
      }
  return out;
}

}  // namespace

const Choices<Recompute>& choices_of(Recompute) {
  static const Choices<Recompute> table("model.recompute", {{Recompute::kNone, "none"},
                                                            {Recompute::kAttention, "attention"},
                                                            {Recompute::kBlock, "block"},
                                                            {Recompute::kAuto, "auto"}});
  return table;
}

std::string RecomputePlan::describe() const {
  std::map<std::string, int64_t> blocks_of_name;
  for (const RecomputePolicy& policy : blocks_)
    for (const std::string& name : policy.kept) blocks_of_name[name] += 1;
  std::map<int64_t, std::vector<std::string>, std::greater<>> names_by_blocks;
  for (const auto& [name, blocks] : blocks_of_name) names_by_blocks[blocks].push_back(name);
  const auto whole = std::count_if(blocks_.begin(), blocks_.end(), [](const auto& policy) { return !policy.enabled; });
  std::vector<std::string> parts;
  if (whole > 0) parts.push_back(fmt::format("everything of {} blocks", whole));
  for (const auto& [blocks, names] : names_by_blocks)
    parts.push_back(fmt::format("{} of {} blocks", fmt::join(names, ", "), blocks));
  return parts.empty() ? "nothing" : fmt::format("{}", fmt::join(parts, "; "));
}

RecomputePlan recompute_plan(const ModelConfig& config) {
  switch (config.recompute) {
    case Recompute::kNone:
      return {};
    case Recompute::kAttention:
      return every_block(config, {true, attention_results(config)});
    case Recompute::kBlock:
    case Recompute::kAuto:
      break;
  }
  return every_block(config, {true});
}

double result_bytes(const ModelConfig& config, const attention::AttentionConfig& attention, const attention::Grid& grid,
                    const PassShape& pass) {
  double out = 0;
  for (const std::vector<Candidate>& block : candidates(config, attention, grid, pass))
    for (const Candidate& candidate : block) out += candidate.bytes;
  return out;
}

FittedPlan fit_plan(const ModelConfig& config, const attention::AttentionConfig& attention, const attention::Grid& grid,
                    const PassShape& pass, double bytes) {
  struct Place {
    size_t block;
    const Candidate* candidate;
  };
  const std::vector<std::vector<Candidate>> blocks = candidates(config, attention, grid, pass);
  std::vector<Place> order;
  for (size_t i = 0; i < blocks.size(); ++i)
    for (const Candidate& candidate : blocks[i]) order.push_back({i, &candidate});
  std::stable_sort(order.begin(), order.end(),
                   [](const Place& a, const Place& b) { return a.candidate->worth() > b.candidate->worth(); });
  std::vector<RecomputePolicy> policies(size_t(layer_count(config)), RecomputePolicy{true});
  FittedPlan out;
  for (const Place& place : order) {
    if (out.bytes + place.candidate->bytes > bytes) continue;
    out.bytes += place.candidate->bytes;
    policies[place.block].kept.insert(place.candidate->name);
  }
  const std::vector<double> whole = whole_block_bytes(config, attention, grid, pass);
  for (size_t i = 0; pass.whole_blocks && i < blocks.size() && policies[i].kept.size() == blocks[i].size(); ++i) {
    double more = whole[i];
    for (const Candidate& candidate : blocks[i]) more -= candidate.bytes;
    if (out.bytes + more > bytes) break;
    out.bytes += more;
    policies[i] = {};
  }
  out.plan = RecomputePlan(std::move(policies));
  return out;
}

}  // namespace vmoba::model
