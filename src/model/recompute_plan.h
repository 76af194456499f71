// What the blocks of a model keep for backward and what they compute again.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/choice.h"
#include "model/common/recompute.h"

namespace vmoba::attention {
struct AttentionConfig;
struct Grid;
}  // namespace vmoba::attention

namespace vmoba::model {

struct ModelConfig;

// model.recompute
enum class Recompute { kNone, kAttention, kBlock, kAuto };
const Choices<Recompute>& choices_of(Recompute);

// One policy for each block; without any, nothing is computed again.
class RecomputePlan {
 public:
  RecomputePlan() = default;
  explicit RecomputePlan(std::vector<RecomputePolicy> blocks) : blocks_(std::move(blocks)) {}

  RecomputePolicy of_block(int64_t index) const {
    return blocks_.empty() ? RecomputePolicy{} : blocks_.at(size_t(index));
  }
  // "attn1 and ffn.net.2 of 30 blocks, attn1.to_q of 12": what is kept beside the inputs of blocks.
  std::string describe() const;

 private:
  std::vector<RecomputePolicy> blocks_;
};

// What model.recompute asks for, `auto` as `block`.
RecomputePlan recompute_plan(const ModelConfig& config);

// A plan, and the bytes that it keeps beside the inputs of blocks.
struct FittedPlan {
  RecomputePlan plan;
  double bytes = 0;
};

// The work of a pass whose results may be kept.
struct PassShape {
  double samples = 1;
  double share = 1;  // of each sample's tokens, where several ranks compute it together
  int64_t text_tokens = 0;
  // Whether blocks may keep all that autograd wants. Gathered weights (model/weight_store.h) would stay.
  bool whole_blocks = true;
};

// Bytes of all results that a plan may keep of a pass, beside whole blocks.
double result_bytes(const ModelConfig& config, const attention::AttentionConfig& attention, const attention::Grid& grid,
                    const PassShape& pass);

// Keeps as much as fits into `bytes`: results that save most work for each byte first, block by block; where all of
// them fit, first blocks are not computed again at all.
FittedPlan fit_plan(const ModelConfig& config, const attention::AttentionConfig& attention, const attention::Grid& grid,
                    const PassShape& pass, double bytes);

}  // namespace vmoba::model
