// What `vmoba-bench attention --sweep` varies, and its results as CSV and as a chart.
#pragma once
#include <string>
#include <vector>

#include "apps/bench/attention_bench.h"
#include "core/drawing.h"

namespace vmoba::bench {

// The options of each point of a sweep:
//   tokens   6, 12, 24, 48 and 87 latent frames (13,824 to 200,448 tokens on a 36x64 patch grid)
//   density  0.05 to 1, by a search for tau
//   blocks   chunks that divide the grid into ever more blocks, for each partition
// Throws Error(kInput) for another axis.
std::vector<BenchOptions> sweep_points(const BenchOptions& options, const std::string& axis);

// One line a case, columns named like the keys of the JSON.
std::string cases_to_csv(const std::vector<BenchCase>& cases);

// Forward + backward ms over the axis, both logarithmic: a line for each partition and one for full attention.
Chart sweep_chart(const std::vector<BenchCase>& cases, const std::string& axis);

}  // namespace vmoba::bench
