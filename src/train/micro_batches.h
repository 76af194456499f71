// What the passes of a step compute on: samples from the stream, encoded or from the cache, with their noise, timesteps
// and captions. The next micro batch is made while the GPU computes on this one.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/dataset.h"
#include "train/cache/lazy_encoders.h"
#include "train/micro_batch.h"

namespace vmoba::train {

class MicroBatches final : public MicroBatchSource {
 public:
  // Everything must outlive it; `image` is null for models without image tokens. `samples` is the size of a micro
  // batch on this rank. A wait for data ends, with Stopped (train/signals.h), where `give_up` turns true.
  MicroBatches(const RootConfig& config, const data::ClipPlan& plan, data::SampleStream& stream,
               const model::Codec& codec, const model::TextEncoder& text, const model::ImageEncoder* image,
               int64_t samples, at::Device device, std::function<bool()> give_up);

  MicroBatch next() override;
  void prepare() override;
  // Time that the GPU, or a CPU's training, spent without work because no sample was there.
  double waited_s() const { return waited_s_; }

 private:
  MicroBatch make();
  // From the cache, or made now.
  NamedTensors encoded_clip(const data::Sample& sample) const;

  const RootConfig& config_;
  const data::ClipPlan& plan_;
  data::SampleStream& stream_;
  const model::Codec& codec_;
  const model::TextEncoder& text_;
  const model::ImageEncoder* image_;
  int64_t samples_;
  at::Device device_;
  std::function<bool()> give_up_;
  std::optional<MicroBatch> prepared_;
  std::exception_ptr error_;
  double waited_s_ = 0;
};

}  // namespace vmoba::train
