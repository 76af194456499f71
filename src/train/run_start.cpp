#include "train/run_start.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "config/clip_geometry.h"
#include "config/device.h"
#include "core/check.h"
#include "data/dataset.h"
#include "data/video_writer.h"
#include "train/forecast/estimate.h"
#include "train/forecast/rank_memory.h"

namespace vmoba::train {
namespace {

constexpr int64_t kLargeModel = 300'000'000;  // parameters: minutes for each step on a CPU

std::string bytes_text(int64_t bytes) {
  return bytes >= (int64_t{1} << 30) ? fmt::format("{:.1f} GiB", double(bytes) / (int64_t{1} << 30))
                                     : fmt::format("{:.1f} MiB", double(bytes) / (1 << 20));
}

// Bytes free for this user; nothing where the file system does not say (some of FUSE's).
std::optional<int64_t> free_bytes(const std::string& folder) {
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  if (error || space.capacity == 0) return std::nullopt;
  return int64_t(std::min<uintmax_t>(space.available, INT64_MAX));
}

int64_t forecast_bytes(const RunStart& start) {
  const attention::Grid grid = largest_grid(clip_geometry(start.config), start.plan.buckets);
  return rank_memory(start.config, start.sizes, grid, start.micro).total();
}

std::string model_line(const RootConfig& config) {
  const ModelSizes sizes = model_sizes(config);
  const std::string& weights = config.experts.empty() ? config.model.weights : config.experts.front().weights;
  const std::string trained = config.lora.enabled() ? fmt::format("a LoRA of rank {} trains {:.2f} M values",
                                                                  config.lora.rank, double(sizes.trainable) / 1e6)
                                                    : "all of them trained";
  return fmt::format("model: {}{}, {:.1f} M parameters{}, {}", config.model.architecture,
                     sizes.experts > 1 ? fmt::format(", {} experts", sizes.experts) : "",
                     double(sizes.parameters) / 1e6, weights.empty() ? ", random" : fmt::format(" from {}", weights),
                     trained);
}

std::vector<std::string> data_lines(const RunStart& start) {
  const data::ClipPlan& plan = start.plan;
  const int64_t micro = start.config.train.micro_batch, batch = start.config.train.global_batch;
  int64_t clips = 0;
  for (const data::Clip& clip : plan.clips) clips += clip.repeats;
  const int64_t samples = data::SampleOrder(plan, /*seed=*/0, micro).samples_per_epoch();
  std::vector<std::string> out = {
      fmt::format("data: {} clips in {} buckets, {} dropped; {} samples, {:.1f} steps an epoch", plan.clips.size(),
                  plan.buckets.size(), plan.dropped.size(), samples, double(samples) / double(batch))};
  if (const TrainConfig& train = start.config.train; train.epochs > 0)
    out.push_back(fmt::format("data: {} epochs (train.epochs) are {} steps", train.epochs, train.steps));
  if (samples > clips)
    out.push_back(
        fmt::format("data: an epoch is {} samples, {} of them shown again to fill micro batches of {} from one bucket",
                    samples, samples - clips, micro));
  return out;
}

std::string memory_line(const RunStart& start) {
  const int64_t there = device_memory_bytes(start.device);
  return fmt::format("memory: {} expected for weights, state and activations{}; encoders not counted",
                     bytes_text(forecast_bytes(start)), there > 0 ? fmt::format(" of {}", bytes_text(there)) : "");
}

std::string checkpoint_line(const RunStart& start) {
  const std::string& dir = start.config.run.dir;
  const auto room = free_bytes(dir);
  const std::string fits =
      room && start.checkpoint_bytes > 0
          ? fmt::format("{} fit in {} ({} free)", *room / start.checkpoint_bytes, dir, bytes_text(*room))
          : fmt::format("in {}", dir);
  return fmt::format("checkpoints: {} each, {}", bytes_text(start.checkpoint_bytes), fits);
}

}  // namespace

std::vector<std::string> start_lines(const RunStart& start) {
  std::vector<std::string> out = {"device: " + device_text(start.device), model_line(start.config)};
  for (std::string& line : data_lines(start)) out.push_back(std::move(line));
  out.push_back(memory_line(start));
  out.push_back(checkpoint_line(start));
  return out;
}

std::vector<std::string> start_warnings(const RunStart& start) {
  std::vector<std::string> out;
  const int64_t there = device_memory_bytes(start.device), wanted = forecast_bytes(start);
  if (there > 0 && wanted > there)
    out.push_back(
        fmt::format("memory: expected {}, found a device of {}; set model.recompute=block, lower "
                    "train.micro_batch or data.frames, or share the state (parallel.shard)",
                    bytes_text(wanted), bytes_text(there)));
  const auto room = free_bytes(start.config.run.dir);
  const int64_t kept = start.config.train.keep_checkpoints;
  if (room && kept > 0 && start.config.train.checkpoint_every > 0 && *room < (kept + 1) * start.checkpoint_bytes)
    out.push_back(
        fmt::format("{}: expected room for train.keep_checkpoints + 1 = {} checkpoints of {} (less those that are "
                    "there), found {}; "
                    "free disk space or keep fewer",
                    start.config.run.dir, kept + 1, bytes_text(start.checkpoint_bytes), bytes_text(*room)));
  if (start.launcher == "mpirun" && std::getenv("OMPI_MCA_odls_base_sigkill_timeout") == nullptr)
    out.push_back(
        fmt::format("mpirun kills its ranks one second after Ctrl-C or SIGTERM; so that they can save, start it as "
                    "`mpirun --mca odls_base_sigkill_timeout {:.0f} ...`",
                    start.config.run.grace_s));
  return out;
}

void check_room(const RunStart& start) {
  const auto room = free_bytes(start.config.run.dir);
  VMOBA_CHECK(
      !room || *room >= start.checkpoint_bytes,
      "run.dir '{}': expected room for one checkpoint of {}, found {}; free disk space or choose another run.dir",
      start.config.run.dir, bytes_text(start.checkpoint_bytes), bytes_text(*room));
}

void check_validation(const RootConfig& config) {
  if (!config.train.validates()) return;
  check_sampling(config);
  data::check_video_encoder();
}

void check_device(const RootConfig& config, at::Device device) {
  if (device.is_cuda() || config.run.device != "auto") return;
  const ModelSizes sizes = model_sizes(config);
  VMOBA_CHECK_INPUT(
      sizes.parameters < kLargeModel,
      "run.device auto: expected a CUDA GPU for {:.0f} M parameters, found none; check the driver (nvidia-smi; CUDA 13 "
      "needs 580 or later), or set run.device=cpu to compute on the CPU all the same",
      double(sizes.parameters) / 1e6);
}

}  // namespace vmoba::train
