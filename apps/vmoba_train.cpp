// vmoba-train: trains or fine-tunes a video diffusion transformer (docs/running.md).
#include <iostream>
#include <optional>

#include "apps/main_guard.h"
#include "apps/train/dry_run.h"
#include "config/root_config.h"
#include "core/log.h"
#include "train/checkpoint/checksums.h"
#include "train/resume.h"
#include "train/trainer.h"

using namespace vmoba;

int main(int argc, char** argv) {
  CLI::App app{"Trains a video diffusion transformer with VMoBA sparse attention."};
  apps::ConfigArguments arguments;
  std::string resume, verify;
  bool reference = false;
  apps::DryRunArguments dry_run;
  arguments.add_to(app);
  app.add_option("--resume", resume,
                 "`latest`, a checkpoint's folder or a run's: continue exactly there; without --config with the "
                 "configuration of the checkpoint");
  app.add_option("--verify", verify, "Compare a checkpoint, or all of a run's folder, with its checksums, and leave");
  dry_run.add_to(app);
  app.add_flag("--config-reference", reference, "Print docs/config.md and leave");
  std::optional<train::dist::World> world;
  const int code = apps::guarded_main(app, argc, argv, [&] {
    if (reference) {
      std::cout << config_reference();
      return 0;
    }
    if (!verify.empty()) {
      const train::Verification found = train::verify_folder(verify);
      std::cout << found.text;
      return found.sound ? 0 : 2;
    }
    VMOBA_CHECK_INPUT(!arguments.path.empty() || !arguments.overrides.empty() || !resume.empty(),
                      "expected --config FILE (for example configs/quickstart.yaml), found none");
    VMOBA_CHECK_INPUT(
        dry_run.wanted || dry_run.ranks == 0,
        "expected --ranks beside --dry-run, found it alone; a run has the ranks that mpirun or srun starts");
    if (!dry_run.wanted) world.emplace();
    const bool of_checkpoint = arguments.path.empty() && !resume.empty();
    const RootConfig config = of_checkpoint ? train::config_of_checkpoint({resume}, arguments.overrides)
                                            : load_root_config(arguments.path, arguments.overrides);
    set_log_level(log_level_from_name(config.run.log_level));
    if (dry_run.wanted) return apps::dry_run(config, dry_run);
    train::Trainer trainer(config, *world);
    return trainer.run({resume});
  });
  return world ? world->leave(code) : code;
}
