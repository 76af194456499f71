// vmoba-encode: latents and text embeddings of a configuration's clips into its cache (docs/running.md).
#include "apps/main_guard.h"
#include "core/log.h"
#include "train/cache/encode_run.h"

namespace {

using namespace vmoba;

struct Arguments {
  apps::ConfigArguments config;
  int64_t rank = -1, ranks = -1;
  bool verify = true, prune = false;
};

int encode(const Arguments& a) {
  const RootConfig config = load_root_config(a.config.path, a.config.overrides);
  set_log_level(log_level_from_name(config.run.log_level));
  train::EncodeOptions options{train::share_from_environment(), a.verify, a.prune};
  if (a.ranks >= 0) options.share = {a.rank, a.ranks, a.rank};
  if (options.share.ranks > 1) set_log_rank(int(options.share.rank), int(options.share.ranks));
  return train::encode_dataset(config, options);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Encodes clips and captions once, so that training reads them (cache.dir) and loads no VAE or text encoder."};
  Arguments a;
  a.config.add_to(app);
  CLI::Option* rank =
      app.add_option("--rank", a.rank, "This process's number, from 0 (default: mpirun's, srun's, torchrun's)");
  CLI::Option* ranks = app.add_option("--ranks", a.ranks, "How many processes share the work")->needs(rank);
  rank->needs(ranks);
  app.add_flag("--verify,!--no-verify", a.verify, "Check what is there against its checksums (default)");
  app.add_flag("--prune", a.prune, "Afterwards remove what this configuration does not need");
  return vmoba::apps::guarded_main(app, argc, argv, [&] { return encode(a); });
}
