// `vmoba-bench attention --paper`: the FLOPs and the latency of a Wan2.1-1.3B layer with VMoBA beside full attention,
// which the VMoBA paper (arXiv 2506.23858) reports as ratios: 2.92x fewer FLOPs and 1.48x lower latency when trained,
// 2.40x and 1.35x without training.
#pragma once
#include <string>
#include <vector>

#include "apps/bench/attention_bench.h"

namespace vmoba::bench {

// The parts of a layer that are not self attention, in multiply-adds' FLOPs and measured time of one forward.
struct LayerRest {
  double flops = 0, forward_ms = 0;
};

// FLOPs by docs/attention.md for `tokens` tokens of one sample: projections, cross attention, feed-forward.
double layer_rest_flops(int64_t tokens);

// The same work timed as its matrix products and cross attention on the GPU in bf16; norms and modulation left out.
LayerRest measure_layer_rest(int64_t tokens, int64_t repeats);

// One line a partition, and their mean as the cycle over depth runs them.
std::string paper_table(const std::vector<BenchCase>& cases, const LayerRest& rest);

}  // namespace vmoba::bench
