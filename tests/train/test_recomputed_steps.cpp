// Training steps of small models of both families give the same losses whatever backward computes again and whatever
// waits in the host's memory. On a GPU (the case with the tag [gpu]) `auto` measures memory for two steps and keeps
// from the third on what fits.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cmath>
#include <functional>

#include "config/device.h"
#include "core/random.h"
#include "model/hunyuan/hunyuan_config.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/stderr_capture.h"
#include "train/step_run.h"

using namespace vmoba;

namespace {

using model::Offload, model::Recompute;

struct Case {
  const char* architecture;
  const char* preset;
  const char* remainder;
  bool lora, fp8;
};

struct Means {
  Recompute recompute;
  Offload offload;
};

constexpr int64_t kTextWidth = 16, kPooledWidth = 24;

struct Size {
  const char* dtype;
  int64_t heads, rows;  // of latents, half as many of patches
  int64_t steps;
};

// The keys that a configuration is loaded with.
RootConfig config_of(const Case& c, const Size& size) {
  const std::string architecture = c.architecture;
  std::vector<std::string> keys = {"model.architecture=" + architecture,
                                   "model.layers=3",
                                   "model.heads=" + std::to_string(size.heads),
                                   "model.head_dim=64",
                                   "model.ffn_dim=" + std::to_string(256 * size.heads),
                                   "model.in_channels=4",
                                   "model.out_channels=4",
                                   "model.text_dim=16",
                                   "text.type=hash",
                                   "text.dim=16",
                                   std::string("model.compute_dtype=") + size.dtype,
                                   std::string("attention.preset=") + c.preset,
                                   std::string("attention.remainder=") + c.remainder,
                                   "attention.backend=vmoba",
                                   "attention.density=0.5",
                                   "attention.dense_warmup_steps=0",
                                   "attention.dense_layers=0",
                                   "attention.full_when_faster=false",
                                   "attention.spatiotemporal_chunk=[4,4,4]",
                                   "train.optimizer.lr=1e-3",
                                   "train.flow.caption_dropout=0"};
  if (std::string(c.preset) == "paper") {
    keys.insert(keys.end(), {"attention.temporal_chunk=2", "attention.spatial_chunk=[4,4]", "attention.tau=0.5"});
    std::erase(keys, "attention.density=0.5");
  }
  if (architecture == model::kHunyuan)
    keys.insert(keys.end(), {"model.single_layers=2", "model.refiner_layers=1", "model.pooled_dim=24",
                             "model.rope_axes=[16,24,24]"});
  if (c.lora) keys.emplace_back("lora.rank=4");
  if (c.fp8) keys.emplace_back("model.linear_compute=fp8");
  return load_root_config("", keys);
}

at::Tensor normals(const char* stream, at::IntArrayRef shape, at::Device device) {
  const at::Tensor out = at::empty(shape, at::kFloat);
  fill_normal(3, stream, 0, out.mutable_data_ptr<float>(), out.numel());
  return out.to(device);
}

train::EncodedBatch clip_on(at::Device device, int64_t rows, bool pooled) {
  train::EncodedBatch clip;
  clip.x0_BCTHW = normals("clip", {1, 4, 8, rows, rows}, device);
  clip.text.tokens_BLE = normals("text", {1, 5, kTextWidth}, device);
  if (pooled) clip.text.pooled_BP = normals("pooled", {1, kPooledWidth}, device);
  return clip;
}

// What a fresh model has at zero lets no gradient through.
void fill_zeros(const std::vector<model::Parameter>& parameters, at::Device device) {
  const at::NoGradGuard no_grad;
  for (const model::Parameter& p : parameters)
    if (p.tensor.dim() > 1 && !p.tensor.to(at::kFloat).any().item<bool>())
      p.tensor.copy_(0.05 * normals(p.name.c_str(), p.tensor.sizes(), device));
}

// The losses of a few steps.
std::vector<double> losses(const Case& c, const Size& size, const Means& means, at::Device device) {
  RootConfig config = config_of(c, size);
  config.model.recompute = means.recompute;
  config.model.offload = means.offload;
  test::StepRun run(config, device);
  fill_zeros(run.experts.front().dit->parameters(), device);
  test::ClipInMemory clip(run.config, clip_on(device, size.rows, c.architecture == model::kHunyuan));
  std::vector<double> out;
  for (int64_t i = 0; i < size.steps; ++i) {
    REQUIRE(run.step.compute({i, i, 0}, clip));
    run.step.update(1e-3);
    out.push_back(run.step.numbers().losses.at(0));
  }
  return out;
}

std::string text_of(const Case& c) {
  return std::string(c.architecture) + ", " + c.preset + ", remainder " + c.remainder + (c.lora ? ", LoRA" : "") +
         (c.fp8 ? ", fp8" : "");
}

constexpr Means kPlain{Recompute::kNone, Offload::kNone};

std::vector<Case> all_cases() {
  std::vector<Case> out;
  for (const char* architecture : {"wan", model::kHunyuan})
    for (const char* preset : {"paper", "cubes"})
      for (const char* remainder : {"none", "one_softmax"})
        for (const bool lora : {false, true}) out.push_back({architecture, preset, remainder, lora, false});
  for (const char* architecture : {"wan", model::kHunyuan}) out.push_back({architecture, "cubes", "none", false, true});
  return out;
}

// The memory that a run took at most.
int64_t peak_bytes(const std::function<void()>& run, at::Device device) {
  c10::cuda::CUDACachingAllocator::emptyCache();
  c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
  run();
  return memory_in_use_bytes(device);
}

void limit_memory(int64_t bytes, at::Device device) {
  RunConfig run;
  run.gpu_memory_gib = double(bytes) / double(1 << 30);
  limit_gpu_memory(run, device);
}

// Every way of computing again against keeping everything; `auto` with a little more memory than `block` takes.
void check_case(const Case& c, at::Device device) {
  const Size size{"bf16", 8, 32, 4};            // 2,048 tokens; a block's activations are 50 MiB
  constexpr int64_t kFree = int64_t(96) << 20;  // beside what recomputing every block takes
  const std::vector<double> plain = losses(c, size, kPlain, device);
  const auto check = [&](const Means& means) {
    INFO(text_of(c) << ", " << choice_word(means.recompute) << ", " << choice_word(means.offload));
    std::vector<double> found;
    const std::string said = test::capture_stderr([&] { found = losses(c, size, means, device); });
    CHECK(test::contains(said, "backward keeps") == (means.recompute == Recompute::kAuto));
    // The first loss has seen no gradient. What lies between the others is not more than the order of sums.
    CHECK(found.at(0) == plain[0]);
    for (size_t i = 1; i < plain.size(); ++i) {
      INFO("step " << i + 1 << ": " << found.at(i) << " and " << plain[i]);
      CHECK(std::abs(found.at(i) - plain[i]) < 1e-3 * plain[i]);
    }
  };
  std::vector<Offload> offloads = {Offload::kActivations, Offload::kNone};
  if (std::string(c.preset) == "cubes" && c.lora) offloads.insert(offloads.end(), {Offload::kWeights, Offload::kBoth});
  for (const Offload offload : offloads) {
    const int64_t least = peak_bytes([&] { check({Recompute::kBlock, offload}); }, device);
    limit_memory(int64_t(1.1 * double(least)) + kFree, device);
    check({Recompute::kAuto, offload});
    c10::cuda::CUDACachingAllocator::setMemoryFraction(1.0, device.index());
  }
  check({Recompute::kAttention, Offload::kNone});
}

void check_on_gpu(const std::string& architecture) {
  if (!at::hasCUDA() || c10::cuda::device_count() == 0) {
    WARN("no GPU: not run");
    return;
  }
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);  // as run.deterministic
  for (const Case& c : all_cases())
    if (c.architecture == architecture) check_case(c, at::Device(at::kCUDA, 0));
  at::globalContext().setDeterministicAlgorithms(false, false);
}

}  // namespace

TEST_CASE("a CPU's losses are the same bits whatever is computed again") {
  const Size size{"fp32", 2, 8, 2};
  for (const Case& c : all_cases()) {
    const std::vector<double> plain = losses(c, size, kPlain, at::kCPU);
    CHECK(plain[0] != plain[1]);
    for (const Recompute recompute : {Recompute::kAttention, Recompute::kBlock}) {
      INFO(text_of(c) << ", " << choice_word(recompute));
      CHECK(losses(c, size, {recompute, Offload::kNone}, at::kCPU) == plain);
    }
  }
}

TEST_CASE("a GPU's losses of Wan are the same whatever is computed again or waits on the host", "[gpu][wan]") {
  check_on_gpu("wan");
}

TEST_CASE("a GPU's losses of HunyuanVideo are the same whatever is computed again or waits", "[gpu][hunyuan]") {
  check_on_gpu(model::kHunyuan);
}
