#include "train/codec/codec_run.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numbers>

#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"
#include "data/dataset.h"
#include "model/codec/patch_codec.h"
#include "model/weights/save.h"
#include "train/signals.h"

namespace vmoba::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kWarmupSteps = 200;
constexpr int64_t kLossSteps = 100;
constexpr double kLogEvery_s = 10;

class CodecRun {
 public:
  CodecRun(const CodecRunConfig& config, const std::vector<at::Tensor>& clips_CFHW,
           const std::vector<at::Tensor>& held_out_CFHW, at::Device device, Clock::time_point start)
      : config_(config),
        clips_(clips_CFHW),
        held_out_(held_out_CFHW),
        device_(device),
        start_(start),
        begin_s_(seconds_since(start)),
        trainer_(config.trainer, principal_patches(clips_CFHW, config.trainer.model.latent_channels), device) {}

  CodecRunResult run();

 private:
  double progress() const {
    const double by_steps = config_.steps > 0 ? double(step_) / double(config_.steps) : 0;
    const double left_s = config_.seconds - begin_s_;
    const double by_time = config_.seconds == 0 ? 0 : (left_s <= 0 ? 1 : (seconds_since(start_) - begin_s_) / left_s);
    return std::min(1.0, std::max(by_steps, by_time));
  }
  double learning_rate(double progress) const {
    return config_.lr * std::min(1.0, double(step_ + 1) / kWarmupSteps) * 0.5 *
           (1 + std::cos(std::numbers::pi * progress));
  }
  double mean_loss(size_t begin, size_t count) const {
    return at::stack(std::vector<at::Tensor>(losses_.begin() + long(begin), losses_.begin() + long(begin + count)))
        .mean()
        .item<double>();
  }
  void log_step(double lr) const;
  void save();

  const CodecRunConfig& config_;
  const std::vector<at::Tensor>&clips_, &held_out_;
  at::Device device_;
  Clock::time_point start_;
  double begin_s_;  // what was over before the first step
  CodecTrainer trainer_;
  int64_t step_ = 0;
  std::vector<at::Tensor> losses_;
  double psnr_db_ = 0;
};

void CodecRun::log_step(double lr) const {
  const size_t count = std::min<size_t>(losses_.size(), kLossSteps);
  log_info("step {}: loss {:.5f}, lr {:.2e}, {:.2f} steps/s, {:.0f} s", step_, mean_loss(losses_.size() - count, count),
           lr, double(step_) / std::max(1e-9, seconds_since(start_) - begin_s_), seconds_since(start_));
}

void CodecRun::save() {
  std::vector<model::NamedTensor> weights = trainer_.weights();
  for (model::NamedTensor& weight : weights) weight.tensor = weight.tensor.to(at::kHalf);
  model::save_tensors(config_.out, model::tensors_to_write(weights),
                      {{"format", "pt"}, {"made_by", "vmoba-train-codec"}, {"steps", std::to_string(step_)}});
  if (held_out_.empty()) {
    log_info("saved '{}' after {} steps", config_.out, step_);
    return;
  }
  const auto codec = model::make_patch_codec({.type = "patch_codec", .weights = config_.out}, device_);
  psnr_db_ = mean_psnr(*codec, held_out_);
  log_info("saved '{}' after {} steps: PSNR {:.2f} dB on {} held-out clips", config_.out, step_, psnr_db_,
           held_out_.size());
}

CodecRunResult CodecRun::run() {
  double saved_s = seconds_since(start_), logged_s = saved_s;
  while (progress() < 1 && stop_signal() == 0) {
    const double lr = learning_rate(progress());
    const at::Tensor video = draw_crops(clips_, config_.crop, config_.batch, config_.trainer.seed, step_);
    losses_.push_back(trainer_.step(video, lr));
    ++step_;
    // The host must not run ahead of the GPU for longer than a few steps.
    if (step_ % 8 == 0) losses_.back().item<float>();
    if (seconds_since(start_) - logged_s >= kLogEvery_s) {
      log_step(lr);
      logged_s = seconds_since(start_);
    }
    if (seconds_since(start_) - saved_s >= config_.save_every_s) {
      save();
      saved_s = seconds_since(start_);
    }
  }
  VMOBA_CHECK_INPUT(step_ > 0, "--seconds: expected more than the {:.0f} s that decoding the clips took, found {:g}",
                    begin_s_, config_.seconds);
  save();
  const size_t count = size_t(std::clamp<int64_t>(step_ / 10, 1, kLossSteps));
  return {step_, mean_loss(0, count), mean_loss(losses_.size() - count, count), psnr_db_, stop_signal() != 0};
}

}  // namespace

void CodecRunConfig::validate() const {
  const model::CodecShape shape = trainer.model.shape();
  VMOBA_CHECK_INPUT(steps > 0 || seconds > 0, "expected --steps or --seconds above 0, found neither");
  VMOBA_CHECK_INPUT(crop.frames == shape.frames(shape.latent_frames(crop.frames)),
                    "--frames: expected 1 + {}n, found {}; use {}", shape.temporal_stride, crop.frames,
                    shape.frames(shape.latent_frames(crop.frames)));
  VMOBA_CHECK_INPUT(crop.height % shape.spatial_stride == 0 && crop.width % shape.spatial_stride == 0,
                    "--crop: expected multiples of {}, found {}x{}", shape.spatial_stride, crop.height, crop.width);
  const std::filesystem::path folder = std::filesystem::absolute(out).parent_path();
  VMOBA_CHECK_INPUT(std::filesystem::is_directory(folder),
                    "--out: expected a file in a folder that exists, found none at '{}'", folder.string());
}

CodecRunResult run_codec_training(const CodecRunConfig& config, const std::vector<at::Tensor>& clips_CFHW,
                                  const std::vector<at::Tensor>& held_out_CFHW, at::Device device,
                                  std::chrono::steady_clock::time_point start) {
  config.validate();
  for (const at::Tensor& clip_CFHW : clips_CFHW)
    VMOBA_CHECK_INPUT(
        clip_CFHW.size(1) >= config.crop.frames && clip_CFHW.size(2) >= config.crop.height &&
            clip_CFHW.size(3) >= config.crop.width,
        "expected clips of at least {} frames of {}x{}, found one of {} of {}x{}; lower --frames or --crop",
        config.crop.frames, config.crop.height, config.crop.width, clip_CFHW.size(1), clip_CFHW.size(2),
        clip_CFHW.size(3));
  at::globalContext().setBenchmarkCuDNN(true);  // shapes stay the same over the run
  return CodecRun(config, clips_CFHW, held_out_CFHW, device, start).run();
}

double mean_psnr(const model::Codec& codec, const std::vector<at::Tensor>& clips_CFHW) {
  constexpr double kPeak = 2;  // of values in [-1, 1]
  double sum = 0;
  for (const at::Tensor& clip_CFHW : clips_CFHW) {
    const int64_t frames = codec.shape().frames(codec.shape().latent_frames(clip_CFHW.size(1)));
    const at::Tensor video = data::to_unit_range(clip_CFHW.narrow(1, 0, frames)).unsqueeze(0);
    const double error = (codec.decode(codec.encode(video)) - video).square().mean().item<double>();
    sum += 10 * std::log10(kPeak * kPeak / error);
  }
  return sum / double(clips_CFHW.size());
}

}  // namespace vmoba::train
