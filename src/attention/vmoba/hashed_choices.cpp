#include <ATen/ATen.h>

#include <cmath>

#include "attention/vmoba/vmoba.h"

namespace vmoba::attention {
namespace {

// A 32-bit hash in int64 tensors, so that every device computes the same: products of 32 with less than 31 bits.
at::Tensor mixed(at::Tensor x) {
  constexpr int64_t kFactor = 0x45d9f3b;
  for (int round = 0; round < 2; ++round) {
    x = at::bitwise_xor(x, at::bitwise_right_shift(x, 16)) * kFactor;
    x = at::bitwise_and(x, 0xffffffff);
  }
  return at::bitwise_xor(x, at::bitwise_right_shift(x, 16));
}

// Hash of (what it is for, layer, head) of each head, to be joined with more.
at::Tensor heads_hash_N(int64_t purpose, const LayerAttention& layer, int64_t heads, const at::TensorOptions& options) {
  const at::Tensor layer_hash = mixed(mixed(at::full({1}, purpose, options)) + layer.index);
  return mixed(layer_hash + at::arange(layer.first_head, layer.first_head + heads, options));
}

constexpr int64_t kGatePurpose = 1, kCountPurpose = 2;

}  // namespace

HashedChoices hashed_choices(const BlockProblem& problem, const Choosers& who, int64_t heads) {
  const VmobaRule& rule = vmoba_rule(problem.layer);
  const at::TensorOptions options = who.block_of.options().dtype(at::kLong);
  const int64_t blocks = problem.tables->blocks, count = who.block_of.size(0);
  const at::Tensor chooser_U = at::arange(count, options);
  HashedChoices out;
  if (rule.select == SelectMode::kRandom) {
    const at::Tensor heads_N = heads_hash_N(kGatePurpose, problem.layer, heads, options);
    out.gate_NCU = at::empty({heads, blocks, count}, options.dtype(at::kFloat));
    for (int64_t n = 0; n < heads; ++n) {  // a head at a time: the hash takes more memory than the gates
      const at::Tensor block_C1 = mixed(heads_N[n] + at::arange(blocks, options)).unsqueeze(1);
      out.gate_NCU[n].copy_(at::bitwise_right_shift(mixed(block_C1 + chooser_U), 8));
    }
  }
  const double wanted = rule.blocks_per_query(blocks), part = wanted - std::floor(wanted);
  if (rule.select != SelectMode::kThreshold && rule.pool == Pool::kQueryHead && part > 0) {
    const at::Tensor heads_N1 = heads_hash_N(kCountPurpose, problem.layer, heads, options).unsqueeze(1);
    out.one_more_NU = mixed(heads_N1 + chooser_U) < int64_t(part * 4294967296.0);
  }
  return out;
}

}  // namespace vmoba::attention
