// A trainer's step (train/training_step.h) on a clip in memory, for tests.
#pragma once
#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

#include "train/dist/dist_world.h"
#include "train/training_step.h"

namespace vmoba::test {

// The same clip for every sample; noise and timestep are drawn as for any other.
class ClipInMemory final : public train::MicroBatchSource {
 public:
  ClipInMemory(const RootConfig& config, train::EncodedBatch clip) : config_(config), clip_(std::move(clip)) {}
  train::MicroBatch next() override {
    train::MicroBatch out;
    out.samples = {next_};
    out.clips = {"a clip"};
    train::TrainingBatch batch = train::make_batch(config_.train.flow, 0, {next_}, clip_);
    train::tell_numbers(config_.model, config_.train.flow, batch);
    out.parts.push_back({{next_}, std::move(batch)});
    ++next_;
    return out;
  }
  void prepare() override {}

 private:
  const RootConfig& config_;
  train::EncodedBatch clip_;
  int64_t next_ = 0;
};

struct StepRun {
  explicit StepRun(const RootConfig& given, at::Device device = at::kCPU)
      : config(given),
        mesh(world(), config.parallel, device),
        share(train::dist::batch_share(config.train, mesh.sizes())),
        experts(train::make_experts(config, device, mesh)),
        step(config, world(), mesh, share, device, experts, nullptr) {}
  RootConfig config;
  train::dist::Mesh mesh;
  train::dist::BatchShare share;
  std::vector<train::Expert> experts;
  train::TrainingStep step;
};

}  // namespace vmoba::test
