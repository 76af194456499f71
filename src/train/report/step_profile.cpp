#include "train/report/step_profile.h"

#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <filesystem>

#include "core/check.h"

namespace vmoba::train {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

StepProfile::StepProfile(at::Device device) : device_(device) {
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  std::set<ActivityType> activities{ActivityType::CPU};
  if (device.is_cuda()) activities.insert(ActivityType::CUDA);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
}

StepProfile::~StepProfile() {
  if (recording_) profiler::disableProfiler();
}

void StepProfile::save(const std::string& path) {
  if (device_.is_cuda()) c10::cuda::device_synchronize();
  recording_ = false;
  profiler::disableProfiler()->save(path);
  VMOBA_CHECK(std::filesystem::exists(path),
              "run.profile_step: expected to write the profile '{}', found that it is not there; "
              "is the disk full or the folder closed to writing?",
              path);
}

}  // namespace vmoba::train
