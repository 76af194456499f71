// An entry of the `experts:` list: one transformer of a run and the timesteps at which it works.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba {

struct ExpertConfig {
  std::string weights;        // as model.weights
  double until_timestep = 0;  // the last timestep of this expert; the next one works below it
  double guidance = 0;        // of classifier-free guidance; 0: sample.guidance
  std::string lora;           // as lora.init_from

  void visit(ConfigVisitor& v);
};

// The number of the expert that works at a timestep; 0 where the list is empty.
size_t expert_at(const std::vector<ExpertConfig>& experts, double timestep);

}  // namespace vmoba
