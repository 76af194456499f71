#include "apps/train/dry_run.h"

#include <ATen/Context.h>

#include <iostream>

#include "apps/main_guard.h"
#include "apps/published_sizes.h"
#include "config/clip_geometry.h"
#include "config/device.h"
#include "config/epochs.h"
#include "config/experts.h"
#include "config/run_plan.h"
#include "model/adapter/lora_file.h"
#include "model/conditioning.h"
#include "model/weights/model_folder.h"
#include "train/cache/encode_cache.h"
#include "train/dist/mesh_sizes.h"
#include "train/forecast/estimate.h"
#include "train/forecast/memory_advice.h"
#include "train/forecast/offload_choice.h"
#include "train/forecast/scale_model.h"
#include "train/forecast/step_seconds.h"
#include "train/run_start.h"
#include "train/signals.h"

namespace vmoba::apps {
namespace {

train::ScaleOptions scale_options(const DryRunArguments& a) {
  train::ScaleOptions out;
  out.ranks = a.ranks;
  out.cluster.ranks_per_host = int(a.ranks_per_host);
  if (a.tflops > 0) out.flops_per_s = 1e12 * a.tflops;
  if (a.memory_gib > 0) out.memory_bytes = int64_t(a.memory_gib * double(1 << 30));
  for (const std::string& path : a.comm) {
    const train::dist::CommMeasurement measured = train::dist::read_comm_measurement(path);
    out.cluster.adopt(measured);
    out.cluster.source +=
        fmt::format("; {} measured with {} {} ranks ({})", measured.hosts == 1 ? "inside a host" : "between hosts",
                    measured.ranks, measured.backend, path);
  }
  return out;
}

// A published VAE in the place of one whose files are missing: the strides decide about tokens, and published ones
// differ by the number of channels.
RootConfig with_known_codec(RootConfig config) {
  try {
    clip_geometry(config);
  } catch (const Error&) {
    // The VAEs of 48 (Wan2.2) and 32 channels (HunyuanVideo 1.5) stride over twice the pixels: what the patches of a
    // model stride over here.
    if (config.model.out_channels == 48 || config.model.out_channels == 32)
      config.model.patch_size = {1, 2 * config.model.patch_size[1], 2 * config.model.patch_size[2]};
    config.model.missing_weights.clear();
    config.codec.type = "dct";
    config.codec.weights.clear();
    const model::CodecShape shape = model::codec_shape(config.codec);
    config.model.in_channels = shape.channels + model::condition_channels(config.model, shape);
    config.model.out_channels = shape.channels;
  }
  return config;
}

// Which GPU the forecast is held against, and its memory; 0 for none.
std::pair<std::string, int64_t> gpu_meant(const RootConfig& config, double gpu_gib) {
  const auto bytes = [](double gib) { return int64_t(gib * double(1 << 30)); };
  if (gpu_gib > 0) return {"--gpu-gib", bytes(gpu_gib)};
  if (config.run.gpu_memory_gib > 0) return {"run.gpu_memory_gib", bytes(config.run.gpu_memory_gib)};
  return {"this GPU", at::hasCUDA() ? device_memory_bytes(at::Device(at::kCUDA, 0)) : 0};
}

// From the configuration alone, where files are still missing: sizes of the model as they are published, and the tokens
// that a published codec makes.
std::string estimate_text(RootConfig config, const data::ClipPlan& plan, double gpu_gib) {
  const std::string missing = config.model.missing_weights, published = take_published_sizes(config.model);
  if (!config.model.missing_weights.empty())
    return fmt::format("memory: unknown until '{}' is there or the sizes are written under model:\n", missing);
  const data::ClipGeometry geometry = clip_geometry(with_known_codec(config));
  const auto buckets = plan.buckets.empty() ? train::configured_buckets(config, geometry) : plan.buckets;
  const auto [gpu, gpu_bytes] = gpu_meant(config, gpu_gib);
  std::string offload;
  if (config.model.offload == model::Offload::kAuto) {
    const train::OffloadChoice choice =
        train::choose_offload(config, {}, train::largest_grid(geometry, buckets), config.train.micro_batch, gpu_bytes);
    offload = choice.reason + "\n";
    config = train::with_offload(std::move(config), choice);
  }
  const train::RunEstimate run = train::estimate_run(config, buckets, geometry);
  return (published.empty() ? "" : fmt::format("sizes                those of {}\n", published)) + offload +
         train::estimate_to_text(config, run) +
         (gpu_bytes > 0 ? train::fit_to_text(config, buckets, geometry, gpu_bytes, gpu) : "") +
         train::time_to_text(config, run, gpu_bytes);
}

// The same for a job of many ranks.
std::string scale_text(RootConfig config, const train::ScaleOptions& options) {
  take_published_sizes(config.model);
  const data::ClipGeometry geometry = clip_geometry(with_known_codec(config));
  const auto buckets = train::configured_buckets(config, geometry);
  return train::scale_to_text(config, train::estimate_run(config, buckets, geometry), options);
}

void check_init_from(const RootConfig& config, size_t expert) {
  const model::LoraConfig lora = expert_lora(config, expert);
  if (!lora.enabled() || lora.init_from.empty()) return;
  const auto adapters = model::read_lora(lora.init_from, model::architecture_of(config.model), at::kCPU);
  for (const model::Adapter& adapter : adapters)
    VMOBA_CHECK_INPUT(adapter.low_rank.a.size(0) == lora.rank, "lora.init_from: expected rank {} in '{}', found {}",
                      lora.rank, lora.init_from, adapter.low_rank.a.size(0));
}

std::vector<std::function<void()>> checks_of(const RootConfig& config, RunPlan& plan) {
  std::vector<std::function<void()>> checks = {
      [&] { validate_training(config); }, [&] { train::dist::check_sequence(config); }, [&] { clip_geometry(config); },
      [&] { train::check_validation(config); },
      [&] { train::time_limit(config.run.save_before == "slurm" ? "" : config.run.save_before, {}); }};
  for (size_t i = 0; i < expert_count(config); ++i) {
    checks.push_back([&config, i] { model::check_weights(expert_model(config, i)); });
    if (config.train.distill.weight > 0)
      checks.push_back([&config, i] { model::check_weights(teacher_model(config, i)); });
    checks.push_back([&config, i] { check_init_from(config, i); });
  }
  checks.push_back([&] {
    if (config.image_encoder.type != "none")
      model::model_folder(config.image_encoder.weights, "image_encoder", "image_encoder.weights");
  });
  checks.push_back([&] {
    RootConfig known = config;
    take_published_sizes(known.model);
    plan = plan_run(with_known_codec(std::move(known)));
    data::check_failures(config.data, plan.training);
    TrainConfig train = config.train;
    take_epochs(train, epochs_of(train, plan.training));
    if (train.epochs > 0) std::cout << fmt::format("epochs               {} are {} steps\n", train.epochs, train.steps);
  });
  checks.push_back([&] { train::check_captions(config, plan.all()); });
  return checks;
}

}  // namespace

void DryRunArguments::add_to(CLI::App& app) {
  app.add_flag("--dry-run", wanted, "Check everything, print parameters, tokens, FLOPs and memory, and leave");
  CLI::Option* count = app.add_option("--ranks", ranks,
                                      "--dry-run: also memory, communication and efficiency per rank "
                                      "for this many ranks, by way to share the work")
                           ->check(CLI::Range(1, 1 << 20));
  app.add_option("--ranks-per-host", ranks_per_host, "--ranks: GPUs of a host (8)")
      ->check(CLI::Range(1, 1 << 20))
      ->needs(count);
  app.add_option("--comm", comm,
                 "--ranks: costs of links, file of `vmoba-bench comm --json`; one of a host, one of several")
      ->needs(count);
  app.add_option("--tflops", tflops,
                 "--ranks: TFLOP/s that one rank reaches in training steps (each kind of kernel as an H200)")
      ->check(CLI::PositiveNumber)
      ->needs(count);
  app.add_option(
         "--gpu-gib", memory_gib,
         "--dry-run: GiB of the GPU that the run should fit into (the present one's); --ranks: of one rank (79)")
      ->check(CLI::PositiveNumber);
}

int dry_run(const RootConfig& config, const DryRunArguments& arguments) {
  // On paper the configuration is enough: printed first, whatever files are still missing.
  if (arguments.ranks > 0) std::cout << scale_text(config, scale_options(arguments)) << std::endl;
  RunPlan plan;
  const std::string refusals = refusals_of(checks_of(config, plan));
  std::cout << estimate_text(config, plan.training, arguments.memory_gib) << std::flush;
  if (!refusals.empty()) throw_input("{}", refusals);
  std::cout << "everything that a run needs is there\n";
  return 0;
}

}  // namespace vmoba::apps
