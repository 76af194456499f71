// vmoba-train: trains or fine-tunes a video diffusion transformer (docs/running.md).
#include <iostream>
#include <optional>

#include "apps/main_guard.h"
#include "core/log.h"
#include "data/clip_plan.h"
#include "model/weights/model_folder.h"
#include "train/cache/encode_cache.h"
#include "train/config.h"
#include "train/estimate.h"
#include "train/trainer.h"

namespace {

using namespace vmoba;

// Everything that a run checks before its first step, without making the model.
int dry_run(const train::RootConfig& config) {
  data::ClipPlan plan;
  apps::check_all({[&] { train::validate_training(config); }, [&] { model::check_weights(config.model); },
                   [&] {
                     if (config.image_encoder.type != "none")
                       model::model_folder(config.image_encoder.weights, "image_encoder", "image_encoder.weights");
                   },
                   [&] { plan = data::plan_clips(config.data, train::clip_geometry(config)); },
                   [&] { train::check_captions(config, plan); }});
  const train::RunEstimate estimate = train::estimate_run(config, plan.buckets);
  std::cout << train::estimate_to_text(config, estimate) << "everything that a run needs is there\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Trains a video diffusion transformer with VMoBA sparse attention."};
  apps::ConfigArguments arguments;
  std::string resume;
  bool dry = false, reference = false;
  arguments.add_to(app);
  app.add_option("--resume", resume, "`latest`, or a checkpoint folder: continue exactly there");
  app.add_flag("--dry-run", dry, "Check everything, print parameters, tokens, FLOPs and memory, and leave");
  app.add_flag("--config-reference", reference, "Print docs/config.md and leave");
  app.set_version_flag("--version", VMOBA_VERSION);
  std::optional<train::dist::World> world;
  const int code = apps::guarded_main(app, argc, argv, [&] {
    if (reference) {
      std::cout << train::config_reference();
      return 0;
    }
    VMOBA_CHECK_INPUT(!arguments.path.empty() || !arguments.overrides.empty(),
                      "expected --config FILE (for example configs/quickstart.yaml), found none");
    if (!dry) world.emplace();
    const train::RootConfig config = train::load_root_config(arguments.path, arguments.overrides);
    set_log_level(log_level_from_name(config.run.log_level));
    if (dry) return dry_run(config);
    train::Trainer trainer(config, *world);
    return trainer.run({resume});
  });
  return world ? world->leave(code) : code;
}
