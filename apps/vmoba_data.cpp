// vmoba-data: the clip plan of a configuration, or its decode rate (docs/data.md).
#include <iostream>

#include "apps/main_guard.h"
#include "config/run_plan.h"
#include "core/log.h"
#include "data/clip_plan.h"
#include "data/decode_bench.h"

namespace {

using namespace vmoba;

struct Arguments {
  apps::ConfigArguments config;
  bool json = false, bench = false;
};

int print_data(const Arguments& a) {
  const RootConfig config = load_root_config(a.config.path, a.config.overrides);
  set_log_level(log_level_from_name(config.run.log_level));
  const RunPlan plans = plan_run(config);
  const data::ClipPlan plan = plans.all();
  if (a.bench)
    std::cout << data::bench_decoding(plans.training, config.data, uint64_t(config.seed));
  else
    std::cout << (a.json ? data::plan_to_json(plan) : data::plan_to_text(plan)) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Prints the clip plan: every clip with its bucket and tokens, every dropped file with its reason."};
  Arguments a;
  a.config.add_to(app);
  CLI::Option* json = app.add_flag("--json", a.json, "The plan as one JSON object");
  app.add_flag("--bench", a.bench, "Decode rate of the plan's longest file and of the training clips, beside ffmpeg")
      ->excludes(json);
  return vmoba::apps::guarded_main(app, argc, argv, [&] { return print_data(a); });
}
