#include "train/forecast/offload_choice.h"

#include <algorithm>
#include <vector>

#include "core/bytes.h"
#include "core/check.h"
#include "train/forecast/memory_advice.h"
#include "train/forecast/rank_memory.h"
#include "train/forecast/step_seconds.h"

namespace vmoba::train {
namespace {

// What PCIe 4 carries over 16 lanes beside other work, and the share of a pass in which copies shall be through.
constexpr double kLinkBytes = 20e9, kHidden = 0.8;

}  // namespace

OffloadChoice choose_offload(const RootConfig& config, const dist::MeshSizes& sizes, const attention::Grid& grid,
                             int64_t micro, int64_t gpu_bytes) {
  using model::Offload;
  if (gpu_bytes == 0) return {Offload::kNone, "model.offload auto: nothing, without a GPU"};
  const bool weights = config.lora.enabled() && sizes.state_ranks() == 1;
  const bool activations = config.model.recompute != model::Recompute::kNone;
  std::vector<Offload> open = {Offload::kNone};
  if (activations) open.push_back(Offload::kActivations);
  if (weights) open.push_back(Offload::kWeights);
  if (weights && activations) open.push_back(Offload::kBoth);
  struct Place {
    Offload offload;
    RankMemory memory;
    int64_t moved() const { return memory.host_weights + memory.host_activations; }
  };
  std::vector<Place> places;
  for (const Offload offload : open)
    places.push_back({offload, rank_memory(with_offload(config, {offload, ""}), sizes, grid, micro)});
  const int64_t usable = usable_bytes(gpu_bytes), without = places.front().memory.total();
  const auto better = [usable](const Place& a, const Place& b) {
    const bool fits_a = a.memory.total() <= usable, fits_b = b.memory.total() <= usable;
    if (fits_a != fits_b) return fits_a;
    return fits_a ? a.moved() < b.moved() : a.memory.total() < b.memory.total();
  };
  const Place& best = *std::min_element(places.begin(), places.end(), better);
  return {best.offload,
          fmt::format("model.offload auto: {}; {:.1f} GiB expected without, {:.1f} with it and {:.1f} in the host's "
                      "memory, {:.1f} of {:.1f} can be taken",
                      choice_word(best.offload), gib(without), gib(best.memory.total()), gib(best.moved()), gib(usable),
                      gib(gpu_bytes))};
}

int64_t resident_weights(const RootConfig& config, const dist::MeshSizes& sizes, const attention::Grid& grid,
                         int64_t micro, int64_t gpu_bytes) {
  if (!model::offloads_weights(config.model.offload) || gpu_bytes == 0 || grid.tokens() == 0) return 0;
  const RankMemory memory = rank_memory(config, sizes, grid, micro);
  const ModelSizes model = model_sizes(config);
  const double density = attention::expected_density(config.attention, grid, model::layer_count(config.model));
  RootConfig least = config;
  least.model.recompute = model::Recompute::kBlock;
  const StepSeconds sample = sample_seconds(least, grid, density, recompute_plan(least.model), h200_rates());
  const double hidden = kHidden * kLinkBytes * double(micro) * sample.total() - double(memory.host_activations);
  // To the GPU twice in a pass.
  const double too_many = double(model.kept_bytes - model.outer_bytes) - std::max(0.0, hidden) / 2;
  const auto left = double(usable_bytes(gpu_bytes) - memory.total());
  return int64_t(std::max(0.0, std::min(too_many, left)));
}

RootConfig with_offload(RootConfig config, const OffloadChoice& choice) {
  config.model.offload = choice.offload;
  return config;
}

}  // namespace vmoba::train
