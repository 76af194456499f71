// The optimisers' kernels (train/kernels/updates.h) on tensors, on a GPU or the CPU with the same bits.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "train/kernels/updates.h"
#include "train/optim/optimizer.h"

namespace vmoba::train {

// The 8-bit codes of moments: bitsandbytes' dynamic maps (Dettmers et al. 2110.02861, section 2), whose values lie
// densest around zero: seven decades of 1, 2, 4 ... 64 (unsigned: 2, 4 ... 128) equal steps each.
const updates::CodeTables& code_tables();

// AdamW on those of an optimiser's parameters that keep two moments, in fp32 or 8 bits. Borrows nothing: tensors are
// shared.
class AdamGroup {
 public:
  AdamGroup(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters,
            const std::vector<Optimizer::State>& state, const Placement& placement);
  // Update number `number`, from 1. `treatments`: of all parameters of the optimiser, by number.
  void update(int64_t number, const Update& update, const std::vector<Optimizer::Treatment>& treatments);

 private:
  struct Member {
    at::Tensor weight, first, second, first_scale, second_scale;  // scales: undefined for moments in fp32
    int64_t first_value = 0;
    std::array<uint32_t, 2> key{};
    size_t parameter = 0;  // its number
  };
  // Of members that are treated alike.
  void update_members(const std::vector<const Member*>& members, int64_t number, const Update& update,
                      const Optimizer::Treatment& treatment);

  OptimizerConfig config_;
  std::vector<Member> members_;
  at::Tensor tables_;  // code_tables() on the device
};

// weight <- decay * weight - size * change, in place; `change` [values of the weight] in bf16.
struct WeightChange {
  at::Tensor weight, change;
  float decay = 1, size = 0;
  int64_t first_value = 0;
  std::array<uint32_t, 2> key{};
  int64_t number = 0;
};
void add_change(const WeightChange& call, const at::Tensor& skip);

// The key of a parameter's draws.
std::array<uint32_t, 2> rounding_key(const Placement& placement, const std::string& parameter);
// The place of a part's first value in the whole parameter.
int64_t first_value_of(const Placement& placement, const at::Tensor& part);

}  // namespace vmoba::train
