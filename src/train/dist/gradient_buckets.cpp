#include "train/dist/gradient_buckets.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "core/check.h"

namespace vmoba::train::dist {

struct GradientBuckets::ReadyHook final : torch::autograd::PostAccumulateGradHook {
  ReadyHook(GradientBuckets& owner, size_t bucket) : owner(owner), bucket(bucket) {}
  void operator()(const at::Tensor&) override { owner.ready(bucket); }
  GradientBuckets& owner;
  size_t bucket;
};

GradientBuckets::GradientBuckets(const std::vector<model::Parameter>& parameters, Communicator& ranks,
                                 int64_t bucket_bytes)
    : ranks_(ranks) {
  // The last parameters' gradients come first.
  int64_t bytes = bucket_bytes;
  for (auto p = parameters.rbegin(); p != parameters.rend(); ++p) {
    if (!p->tensor.requires_grad()) continue;
    const bool other_kind =
        !buckets_.empty() && buckets_.back().parameters.back().scalar_type() != p->tensor.scalar_type();
    if (bytes >= bucket_bytes || other_kind) {
      buckets_.emplace_back();
      bytes = 0;
    }
    buckets_.back().parameters.push_back(p->tensor);
    bytes += int64_t(p->tensor.nbytes());
  }
  for (size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    int64_t count = 0;
    for (const at::Tensor& parameter : bucket.parameters) count += parameter.numel();
    bucket.flat = at::zeros({count}, bucket.parameters.front().options().requires_grad(false));
    int64_t offset = 0;
    for (const at::Tensor& parameter : bucket.parameters) {
      bucket.slices.push_back(bucket.flat.narrow(0, offset, parameter.numel()).view(parameter.sizes()));
      offset += parameter.numel();
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<ReadyHook>(*this, b));
    }
  }
}

GradientBuckets::~GradientBuckets() {
  for (Bucket& bucket : buckets_) {
    for (at::Tensor& parameter : bucket.parameters) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
      parameter.mutable_grad().reset();
    }
  }
}

void GradientBuckets::begin_step() {
  last_pass_ = false;
  next_ = 0;
  for (Bucket& bucket : buckets_) {
    bucket.flat.zero_();
    for (size_t i = 0; i < bucket.parameters.size(); ++i) bucket.parameters[i].mutable_grad() = bucket.slices[i];
  }
}

void GradientBuckets::begin_last_pass() {
  last_pass_ = true;
  for (Bucket& bucket : buckets_) bucket.missing = bucket.parameters.size();
}

void GradientBuckets::ready(size_t bucket) {
  if (!last_pass_) return;
  buckets_[bucket].missing -= 1;
  launch_complete();
}

// In the order of the buckets, which all ranks share, whatever the order in which gradients come.
void GradientBuckets::launch_complete() {
  while (next_ < buckets_.size() && buckets_[next_].missing == 0) {
    buckets_[next_].sum = ranks_.all_reduce(buckets_[next_].flat);
    ++next_;
    ++early_sums_;
  }
}

void GradientBuckets::finish() {
  last_pass_ = false;
  // A parameter that took no part has a gradient of zero on this rank; others may have one.
  for (; next_ < buckets_.size(); ++next_) buckets_[next_].sum = ranks_.all_reduce(buckets_[next_].flat);
  for (Bucket& bucket : buckets_) {
    bucket.sum->wait();
    bucket.sum.reset();
    for (size_t i = 0; i < bucket.parameters.size(); ++i)
      VMOBA_CHECK(bucket.parameters[i].grad().is_same(bucket.slices[i]) ||
                      bucket.parameters[i].grad().const_data_ptr() == bucket.slices[i].const_data_ptr(),
                  "expected backward to add gradients into their bucket, found another tensor in place of gradient {}",
                  i);
  }
}

}  // namespace vmoba::train::dist
