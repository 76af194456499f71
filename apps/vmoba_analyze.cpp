// vmoba-analyze: where a model's attention lies, and what selections of blocks would keep of it (docs/quality.md).
#include <filesystem>
#include <iostream>

#include "apps/analyze/layer_findings.h"
#include "apps/analyze/saved_tensors.h"
#include "apps/eval/job.h"
#include "apps/main_guard.h"
#include "config/device.h"
#include "config/experts.h"
#include "core/file.h"
#include "core/log.h"
#include "model/common/dtype.h"

namespace {

using namespace vmoba;

struct Arguments {
  apps::EvalArguments eval;
  std::string out = "analysis", saved;
  double density = 0.2, least = 0;
  std::vector<int64_t> layers;
};

void look(const Arguments& a, const RootConfig& config, apps::AttentionAnalysis& analysis) {
  const at::Device device = prepare_device(config.run);
  const apps::EvalSource source(config, device);
  const apps::SampleModel model = apps::load_sample_model(a.eval.model, config, device);
  const std::vector<model::Dit*> dits = model.borrowed();
  apps::SavedTensors saved(a.saved, a.layers, analysis);
  const attention::ObservedAttention observed(saved);
  const auto clips = int64_t(source.plan.clips.size());
  for (int64_t i = 0; i < clips; ++i) {
    const train::HeldOutClip clip = train::encode_held_out(source.encoder(config), i);
    VMOBA_CHECK_INPUT(clip.failure.empty(), "--data: expected clips that can be decoded, found '{}': {}", clip.name,
                      clip.failure);
    for (const double sigma : config.validation.sigmas) {
      log_info("clip {}/{}, noise {}", i + 1, clips, sigma);
      analysis.begin(sigma);
      const train::TrainingBatch batch =
          train::held_out_batch(config, uint64_t(config.validation.seed), clip, sigma, device);
      train::held_out_loss(*dits[expert_at(config.experts, 1000 * sigma)], batch,
                           {model::scalar_type(config.model.compute_dtype), /*dense=*/true});
    }
  }
}

int analyze(const Arguments& a) {
  const RootConfig config = apps::eval_config(a.eval);
  set_log_level(log_level_from_name(config.run.log_level));
  const int64_t layers = model::layer_count(config.model);
  for (const int64_t layer : a.layers)
    VMOBA_CHECK_INPUT(layer >= 0 && layer < layers, "--layers: expected 0 .. {}, found {}", layers - 1, layer);
  apps::AttentionAnalysis analysis(config.attention, a.density, a.layers);
  look(a, config, analysis);
  std::filesystem::create_directories(a.out);
  for (const auto& [layer, findings] : analysis.layers())
    write_file_atomically(fmt::format("{}/layer-{:02d}.png", a.out, layer), apps::findings_to_png(layer, findings));
  write_file_atomically(a.out + "/report.json", analysis.to_json(a.least));
  write_file_atomically(a.out + "/attention.yaml", analysis.to_yaml(a.least));
  std::cout << analysis.to_yaml(a.least);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Shows where a model's attention lies, and what selections of blocks would keep of it."};
  Arguments a;
  app.add_option("--checkpoint", a.eval.model.checkpoint,
                 "checkpoint-<step> folder of a run, or a run, whose newest one is taken");
  app.add_option("--config", a.eval.model.config, "Configuration whose model.weights are looked at, untrained");
  app.add_option("--data", a.eval.data, "Clips, a folder or manifest (default: those of the group validate:)");
  app.add_option("--clips", a.eval.clips, "Clips, at even distances among all (default: validate.clips)")
      ->check(CLI::PositiveNumber);
  app.add_option("--sigmas", a.eval.sigmas, "Noise levels (default: validate.sigmas)")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--density", a.density, "Density at which partitions are chosen (0.2)")->check(CLI::Range(0.001, 1.0));
  app.add_option("--full-below", a.least, "Layers that keep less than this share of their attention stay full (0)")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--layers", a.layers, "Layers that are looked at (default: all)")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--out", a.out, "Folder for layer-<n>.png, report.json and attention.yaml (analysis)");
  app.add_option("--save-qkv", a.saved,
                 "Folder for q, k and v of each layer in the first pass, for `vmoba-bench attention --inputs`");
  app.add_flag("--ema,!--no-ema", a.eval.model.use_ema, "Use the averaged weights where there are any (default)");
  app.add_option("overrides", a.eval.model.overrides, "key.sub=value, for example attention.spatial_chunk=[3,4]");
  return vmoba::apps::guarded_main(app, argc, argv, [&] {
    a.eval.model = vmoba::apps::with_checkpoint(a.eval.model);
    return analyze(a);
  });
}
