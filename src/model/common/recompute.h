// Activation checkpointing: run a function without keeping its activations and run it again in backward. What is dear
// to compute and cheap to hold can be kept from the first run for the second.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace vmoba::model {

class HostInputs;  // model/common/host_inputs.h

// What backward computes again.
struct RecomputePolicy {
  bool enabled = false;             // false: nothing; autograd keeps all that it needs
  std::set<std::string> kept = {};  // names of the tensors that a first run keeps for the second (Kept::keep)
};

// What a body keeps of its first run. The tensors are saved with the graph: they live until its backward has run.
class Kept {
 public:
  // Of a body's only run: nothing is kept.
  Kept() = default;
  static Kept first_run(std::set<std::string> wanted);
  static Kept second_run(std::map<std::string, std::vector<at::Tensor>> tensors);

  // Whether this is the run within backward.
  bool again() const { return again_; }
  // Whether this is a first run that keeps `name`.
  bool wants(const std::string& name) const { return wanted_.contains(name); }
  // In the first run: keeps the values of `tensors` where the policy wants that name, once for each name. They must not
  // be changed in place afterwards; undefined ones stay undefined.
  void keep(const std::string& name, const std::vector<at::Tensor>& tensors);
  void keep(const std::string& name, const at::Tensor& tensor) { keep(name, std::vector<at::Tensor>{tensor}); }
  // In the second run: what the first one kept; empty where it kept nothing, and in the first run. The tensors have no
  // history. An operation that takes its result from here must still give its inputs their gradients: an autograd
  // function whose forward returns the fetched tensor instead of computing it.
  std::vector<at::Tensor> fetch_all(const std::string& name) const;
  // The same of a name with one tensor; undefined where nothing was kept.
  at::Tensor fetch(const std::string& name) const;

  const std::map<std::string, std::vector<at::Tensor>>& tensors() const { return tensors_; }

 private:
  bool again_ = false;
  std::set<std::string> wanted_;
  std::map<std::string, std::vector<at::Tensor>> tensors_;
};

// A function of `inputs` and of nothing else that takes part in gradients. It must give the same values both times.
// Whatever it refers to must outlive the graph.
using RecomputedFunction = std::function<at::Tensor(const std::vector<at::Tensor>& inputs, Kept& kept)>;

// body(inputs, ...), keeping for backward what `policy` says. Values and first-order gradients are bit-identical to
// calling body directly; second-order gradients are not supported where `policy` is enabled. With `host`, which must
// outlive the forward and the backward, the first input waits for its second run there.
at::Tensor recompute_in_backward(const RecomputedFunction& body, const std::vector<at::Tensor>& inputs,
                                 const RecomputePolicy& policy, HostInputs* host = nullptr);

}  // namespace vmoba::model
