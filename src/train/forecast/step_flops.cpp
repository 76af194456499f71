#include "train/forecast/step_flops.h"

#include <algorithm>

#include "model/adapter/lora.h"
#include "model/architecture.h"

namespace vmoba::train {

std::map<std::string, int64_t> adapters_of(const RootConfig& config) {
  if (!config.lora.enabled()) return {};
  return model::adapter_values(config.lora, model::architecture_of(config.model),
                               model::parameter_shapes(config.model));
}

StepFlops step_flops(const RootConfig& config, const std::map<std::string, int64_t>& adapters,
                     const std::vector<model::ForwardWork>& work, bool recomputed) {
  const bool frozen = config.lora.enabled();
  StepFlops out;
  bool reached = !frozen;
  for (const model::ForwardWork& piece : work) {
    const auto found = adapters.find(piece.module);
    const double adapter = found == adapters.end() ? 0 : 2 * piece.rows * double(found->second);
    reached |= found != adapters.end();
    out.forward += piece.flops + adapter;
    if (!reached) continue;
    const double gradients = !frozen || piece.module.empty() ? 2 : piece.on_tokens ? 1 : 0;
    out.backward += gradients * piece.flops + 2 * adapter;
    if (recomputed) out.backward += piece.flops + adapter;
  }
  return out;
}

double recomputed_share(const RootConfig& config, const std::vector<model::ForwardWork>& work,
                        const model::RecomputePlan& plan) {
  const model::Architecture& architecture = model::architecture_of(config.model);
  std::map<std::string, int64_t> number;  // of each block, in the order of computing
  double all = 0, again = 0;
  for (const model::ForwardWork& piece : work) {
    const std::string block = model::block_of(architecture, piece.result);
    if (block.empty()) continue;
    const int64_t index = number.emplace(block, int64_t(number.size())).first->second;
    const model::RecomputePolicy policy = plan.of_block(index);
    all += piece.flops;
    if (policy.enabled && !policy.kept.contains(piece.result.substr(block.size()))) again += piece.flops;
  }
  return all > 0 ? again / all : 0;
}

double SampleWork::attention(double density) const {
  if (sparse_layers == 0) return other_attention;
  const double sparse = std::clamp((density - (1 - sparse_layers)) / sparse_layers, 0.0, 1.0);
  return other_attention + sparse * sparse_attention;
}

SampleWork sample_work(const RootConfig& config, const attention::Grid& grid, int64_t text_tokens) {
  const std::map<std::string, int64_t> adapters = adapters_of(config);
  const auto flops = [&](double density, bool products_alone) {
    std::vector<model::ForwardWork> work =
        model::forward_work(config.model, config.attention, grid, text_tokens, density);
    if (products_alone)
      for (model::ForwardWork& piece : work)
        if (piece.module.empty()) piece.flops = 0;
    return step_flops(config, adapters, work, /*recomputed=*/false).total();
  };
  SampleWork out;
  out.products = flops(1, true);
  out.other_attention = flops(0, false) - out.products;
  out.sparse_attention = flops(1, false) - flops(0, false);
  const int64_t layers = model::layer_count(config.model);
  for (int64_t i = 0; i < layers; ++i)
    out.sparse_layers += layer_attention(config.attention, i, /*dense=*/false).sparse() ? 1.0 / double(layers) : 0;
  return out;
}

}  // namespace vmoba::train
