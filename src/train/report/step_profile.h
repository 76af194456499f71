// What the CPU and the GPU did in one step, as a Chrome trace (open it in ui.perfetto.dev, or
// scripts/summarize_profile.py). Recording lasts from construction to save().
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace vmoba::train {

class StepProfile {
 public:
  explicit StepProfile(at::Device device);
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  // Waits for the GPU and writes what was recorded. Throws Error(kRuntime) where the file cannot be written.
  void save(const std::string& path);

 private:
  at::Device device_;
  bool recording_ = true;
};

}  // namespace vmoba::train
