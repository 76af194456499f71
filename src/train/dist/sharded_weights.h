// model::WeightStore over a group of ranks that hold one copy of a model together, and the sums of its gradients.
//
// Whole parameters of a unit are gathered in one all_gather for each of their types (fp8 factors in two, values and
// scales of rows), begun while the unit before computes, and freed with the graph that used them; or kept from their
// first use in a step to its finish() (keep_gathered), so that backward gathers nothing and need not compute again for
// want of weights. Backward sums a unit's gradients in fp32 over the group in one reduce_scatter, which goes on while
// the next unit's backward computes; in a step's last pass the parts' gradients are then summed over the other copies'
// ranks. Owns gathered parameters and gradients; borrows the groups.
#pragma once
#include <memory>
#include <vector>

#include "model/weight_store.h"
#include "train/dist/communicator.h"
#include "train/dist/gradient_sums.h"

namespace vmoba::train::dist {

class ShardedWeights final : public model::WeightStore, public GradientSums {
 public:
  // `ranks` hold a copy together; `replicas` hold the same parts of other copies. Both must outlive it. Parts are
  // multiples of `values_per_unit` (train/optim/optimizer.h).
  ShardedWeights(Communicator& ranks, Communicator& replicas, int64_t values_per_unit = 1)
      : ranks_(ranks), replicas_(replicas), values_per_unit_(values_per_unit) {}
  ShardedWeights(const ShardedWeights&) = delete;
  ShardedWeights& operator=(const ShardedWeights&) = delete;

  at::Tensor keep(const at::Tensor& whole) const override;
  size_t add_unit(std::vector<model::StoredParameter> parameters) override;
  std::vector<at::Tensor> gather(size_t unit, at::TensorList parts, at::ScalarType compute_dtype, bool again) override;

  // Whether a step keeps what it has gathered, to finish() or drop_gathered(). Counts from the next step on; the same
  // on all ranks.
  void keep_gathered(bool keep) { keeps_ = keep; }
  // Frees what the step keeps. Until the next step nothing is kept: other weights may lie in the parts.
  void drop_gathered();
  // Bytes of all units' whole parameters as they travel.
  int64_t gathered_bytes(at::ScalarType compute_dtype) const;

  void begin_step() override;
  void begin_last_pass() override;
  void finish() override;

  // Gathers that began before the unit was asked for, since the object was made: how far they overlap.
  int64_t early_gathers() const { return early_gathers_; }

 private:
  friend struct GatherUnit;

  struct Unit {
    std::vector<model::StoredParameter> parameters;
    at::Tensor gradient;            // of all parts that are trained, one behind the other; undefined where none is
    bool summed = false;            // over the copies, in this step
    std::vector<at::Tensor> whole;  // what the step keeps of it
    at::ScalarType whole_dtype = at::kFloat;  // compute dtype of `whole`
  };
  // Parameters of one type under way.
  struct Gathering {
    at::ScalarType dtype;
    bool as_fp8 = false;               // e4m3 values, and a scale for each row
    std::vector<size_t> members = {};  // numbers of the unit's parameters
    at::Tensor flat = {};              // [ranks, values of all members' parts]
    at::Tensor scales = {};            // [ranks, rows of all members' parts], where as_fp8
    WorkPtr work = {}, scale_work = {};
  };
  struct GatheredUnit {
    size_t unit;
    at::ScalarType compute_dtype;
    std::vector<Gathering> gatherings;
  };
  // A unit's gradients on their way to the parts.
  struct Scattering {
    size_t unit;
    at::Tensor own;
    WorkPtr work;
  };

  GatheredUnit launch(size_t unit, at::ScalarType compute_dtype);
  std::vector<at::Tensor> whole_parameters(size_t unit, at::ScalarType compute_dtype, bool again);
  std::vector<at::Tensor> await(GatheredUnit gathered);
  bool holds(size_t unit, at::ScalarType compute_dtype) const;
  void begin_next(size_t unit, at::ScalarType compute_dtype, bool again);
  void scatter(size_t unit, const std::vector<at::Tensor>& gradients);
  void settle();
  void sum_over_copies(Unit& unit);

  Communicator& ranks_;
  Communicator& replicas_;
  int64_t values_per_unit_;
  std::vector<Unit> units_;
  std::unique_ptr<GatheredUnit> ahead_;
  std::unique_ptr<Scattering> scattering_;
  std::vector<WorkPtr> copy_sums_;
  bool last_pass_ = false;
  bool keeps_ = false;    // from the next step on
  bool keeping_ = false;  // within a step that keeps
  int64_t early_gathers_ = 0;
};

// The norm of a vector whose parts the ranks hold, from the norm of each rank's part. Collective.
at::Tensor norm_over_parts(Communicator& ranks, const at::Tensor& norm_of_part);

}  // namespace vmoba::train::dist
