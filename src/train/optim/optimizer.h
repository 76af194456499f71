// What changes the parameters from their gradients, and the table of its kinds.
//
// An optimiser says what it keeps of a parameter before it exists (StateLayout), and keeps exactly that: checkpoints,
// the parts that ranks hold and the memory forecast read the description. State lives on the parameters' device.
// Parameters are borrowed, whole or this rank's part of them (model/weight_store.h). Those in bf16 are rounded
// stochastically: the draws depend on (seed, parameter, number of the update, place in the whole parameter) alone.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "config/train_config.h"
#include "model/dit.h"

namespace vmoba::train {

// One tensor that is kept of a parameter; a checkpoint stores it as "<name>.<name of the parameter>".
struct StateLayout {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  int64_t values_per_entry = 1;  // consecutive values of the flattened parameter that share an entry

  // For a parameter, or part of one, of this shape: the same, or [entries] where several values share one.
  std::vector<int64_t> shape(at::IntArrayRef parameter) const;
  int64_t entries(int64_t values) const { return (values + values_per_entry - 1) / values_per_entry; }
};

// Where the parameters lie, and what their rounding is drawn from.
struct Placement {
  uint64_t seed = 0;
  // Ranks that hold the parameters together, a part each, and this one's number among them.
  int64_t part = 0, parts = 1;
  // Between them: slice r of `out` [parts * n] <- this rank's slice of rank r's `in` [parts * n]. Collective; empty for
  // one rank.
  std::function<void(const at::Tensor& in, const at::Tensor& out)> exchange = {};
};

// What an update needs beside gradients. Tensors are fp32 or fp64 scalars on the parameters' device.
struct Update {
  double lr = 0;
  at::Tensor gradient_factor = {};  // of every gradient; undefined: 1
  // Where it is not 0, no parameter changes; the state is then worth nothing until it is loaded again. Undefined: 0.
  at::Tensor skip = {};
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One update from the parameters' .grad; a parameter without one counts as zero gradient. No synchronisation.
  // Gradients may be changed.
  virtual void step(const Update& update) = 0;
  void step(double lr) { step(Update{lr}); }
  // The number of updates that the state comes from.
  virtual void set_steps(int64_t steps_done) = 0;
  void zero_grad();
  // How a parameter is treated unlike others.
  struct Treatment {
    double lr_factor = 1;  // of Update::lr
    bool decays = true;    // takes weight decay
    auto operator<=>(const Treatment&) const = default;
  };
  void treat(size_t parameter, Treatment treatment) { treatments_[parameter] = treatment; }

  // Of each parameter in turn, to be read or overwritten.
  struct State {
    size_t parameter = 0;  // its number
    StateLayout layout;
    at::Tensor tensor;  // zeros at first
  };
  const std::vector<State>& state() const { return state_; }

 protected:
  using Layouts = std::function<std::vector<StateLayout>(const model::Parameter&)>;
  Optimizer(const std::vector<model::Parameter>& parameters, const Layouts& layouts);
  const std::vector<at::Tensor>& parameters() const { return parameters_; }
  const std::vector<Treatment>& treatments() const { return treatments_; }
  // The parameters' gradients, zeros where there is none.
  std::vector<at::Tensor> gradients() const;
  // The state of this name, parameter by parameter.
  std::vector<at::Tensor> state_of(const std::string& name) const;

 private:
  std::vector<at::Tensor> parameters_;
  std::vector<Treatment> treatments_;  // by parameter
  std::vector<State> state_;
};

// The configured optimiser, and without making it: what it keeps of a parameter (name, shape and type count, values do
// not), and how many consecutive values of a flattened parameter must lie on one rank together, where ranks hold parts
// (`rounds`: parameters are in bf16).
std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          const std::vector<model::Parameter>& parameters,
                                          const Placement& placement = {});
std::vector<StateLayout> optimizer_state(const OptimizerConfig& config, const model::Parameter& parameter);
int64_t values_per_unit(const OptimizerConfig& config, bool rounds);

// Bytes of state that a rank keeps where `ranks` ranks hold the parameters together.
int64_t optimizer_bytes(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters, int64_t ranks);

}  // namespace vmoba::train
