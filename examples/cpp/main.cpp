// Attention of one layer over a random video, sparse and full: prints how much the sparse layer attended, and how near
// all blocks come to full attention.
#include <ATen/ATen.h>
#include <attention/attention.h>
#include <ops/options.h>

#include <cstdio>

using namespace vmoba;

int main() {
  const attention::Grid grid{4, 6, 8};
  const at::Tensor q = at::randn({1, grid.tokens(), 2, 32}), k = at::randn_like(q), v = at::randn_like(q);

  attention::AttentionStats stats;
  const attention::LayerAttention sparse = ops::layer_of_options("{tau: 0.3, temporal_chunk: 1}");
  attention::self_attention(q, k, v, grid, /*text_tokens=*/0, sparse, &stats);
  std::printf("density %.3f of %lld blocks\n", stats.densities().at("all"),
              static_cast<long long>(attention::block_count(grid, sparse)));

  const attention::LayerAttention all = ops::layer_of_options("{tau: 1, temporal_chunk: 1}");
  const attention::LayerAttention full = ops::layer_of_options("{backend: full}");
  const at::Tensor difference = attention::self_attention(q, k, v, grid, 0, all, nullptr) -
                                attention::self_attention(q, k, v, grid, 0, full, nullptr);
  const double largest = difference.abs().max().item<double>();
  std::printf("all blocks and full attention differ by at most %.1e\n", largest);

  try {
    ops::layer_of_options("{tua: 0.3}");
  } catch (const Error& error) {
    std::printf("a wrong key: %s\n", error.what());
    return largest < 1e-5 ? 0 : 1;
  }
  return 1;
}
