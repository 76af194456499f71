// Sums of gradients over ranks that each hold all parameters, in buckets, while backward still runs.
//
// A bucket is one flat tensor whose slices are the parameters' .grad; it is summed as soon as the last gradient of it
// is complete, in an order that all ranks share: backward's. Passes before the last of an optimiser step only add to
// the buckets, without traffic. Owns the buckets; borrows the group.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/dit.h"
#include "train/dist/communicator.h"
#include "train/dist/gradient_sums.h"
#include "train/dist/mesh_sizes.h"

namespace vmoba::train::dist {

class GradientBuckets final : public GradientSums {
 public:
  // Parameters that do not require gradients are left out. `bucket_bytes`: least size of a bucket but the last.
  GradientBuckets(const std::vector<model::Parameter>& parameters, Communicator& ranks,
                  int64_t bucket_bytes = kBucketBytes);
  ~GradientBuckets() override;
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  // Gradients become zeros in the buckets.
  void begin_step() override;
  // The backward that follows is the step's last: sums may begin. Without it they begin in finish().
  void begin_last_pass() override;
  // Every .grad is the sum over ranks when this returns. Throws Error(kRuntime) where backward put a gradient
  // elsewhere.
  void finish() override;

  size_t bucket_count() const { return buckets_.size(); }
  // Sums that began before finish(), since the object was made: how far they overlapped with backward.
  int64_t early_sums() const { return early_sums_; }

 private:
  struct Bucket {
    at::Tensor flat;
    std::vector<at::Tensor> parameters, slices;  // slices in the parameters' shapes
    size_t missing = 0;                          // gradients that the last pass has not completed
    WorkPtr sum;
  };
  struct ReadyHook;

  void ready(size_t bucket);
  void launch_complete();

  Communicator& ranks_;
  std::vector<Bucket> buckets_;
  size_t next_ = 0;  // the first bucket whose sum has not begun
  bool last_pass_ = false;
  int64_t early_sums_ = 0;
};

}  // namespace vmoba::train::dist
