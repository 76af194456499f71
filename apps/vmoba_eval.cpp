// vmoba-eval: held-out loss of a checkpoint under several attentions, with paired differences, and samples from equal
// noise (docs/quality.md).
#include <iostream>

#include "apps/eval/job.h"
#include "apps/main_guard.h"
#include "config/device.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"

namespace {

using namespace vmoba;

nlohmann::ordered_json to_json(const std::vector<apps::ComparedSample>& samples) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (const apps::ComparedSample& sample : samples) {
    nlohmann::ordered_json one = {{"setting", sample.setting}, {"prompt", sample.prompt}};
    if (!sample.video.empty()) one["video"] = sample.video;
    one["psnr_db"] = sample.psnr_db;  // null where it is infinite
    one["ssim"] = sample.ssim;
    one["latent_error"] = sample.latent_error;
    out.push_back(one);
  }
  return out;
}

train::Baseline baseline_of(const std::string& against, const train::Evaluation& evaluation) {
  if (against.empty()) return {evaluation.settings.front().name, evaluation.settings.front()};
  const size_t colon = against.rfind(".json:");
  if (colon == std::string::npos) return train::read_baseline(against, "", evaluation);
  return train::read_baseline(against.substr(0, colon + 5), against.substr(colon + 6), evaluation);
}

int evaluate(const apps::EvalArguments& a) {
  RootConfig config = apps::eval_config(a);
  set_log_level(log_level_from_name(config.run.log_level));
  const std::vector<train::EvaluatedSetting> settings = apps::eval_settings(a, config);
  for (const train::EvaluatedSetting& setting : settings) model::add_learnt(config.model, setting.attention);
  const at::Device device = prepare_device(config.run);
  const apps::EvalSource source(config, device);
  const apps::SampleModel model = apps::load_sample_model(a.model, config, device);
  const train::Evaluation evaluation =
      train::evaluate(config, model.borrowed(), source.encoder(config), settings,
                      [](int64_t clip, int64_t clips) { log_info("clip {}/{}", clip, clips); });
  const train::Baseline baseline = baseline_of(a.against, evaluation);
  const std::vector<apps::ComparedSample> samples = apps::compare_samples(a, config, source, model, settings);
  if (!a.json.empty()) {
    auto out = parse_ordered_json(train::evaluation_to_json(evaluation, baseline), "the evaluation");
    if (!samples.empty()) out["samples"] = to_json(samples);
    write_file_atomically(a.json, out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  std::cout << train::evaluation_to_text(evaluation, baseline);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Held-out loss of one model under several attentions: the same clips with the same noise for all."};
  apps::EvalArguments a;
  app.add_option("--checkpoint", a.model.checkpoint,
                 "checkpoint-<step> folder of a run, or a run, whose newest one is taken");
  app.add_option("--config", a.model.config, "Configuration whose model.weights are evaluated, untrained");
  app.add_option("--data", a.data, "Held-out clips, a folder or manifest (default: those of the group validate:)");
  app.add_option("--set", a.sets,
                 "An attention, as \"NAME: attention.key=value ...\"; may be repeated, the first is compared with")
      ->allow_extra_args(false);
  app.add_option("--against", a.against, "FILE.json or FILE.json:NAME of an earlier --json to compare with instead");
  app.add_option("--clips", a.clips, "Clips, at even distances among all (default: validate.clips)")
      ->check(CLI::PositiveNumber);
  app.add_option("--sigmas", a.sigmas, "Noise levels (default: validate.sigmas)")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--seed", a.seed, "Seed of the noise (default: validate.seed)")->check(apps::whole_number());
  app.add_option("--samples", a.samples, "Clips whose captions are sampled under every setting, from equal noise");
  app.add_option("--videos", a.videos, "Folder to write the samples to");
  app.add_option("--json", a.json, "File to write losses of all clips, differences and samples to");
  app.add_flag("--ema,!--no-ema", a.model.use_ema, "Use the averaged weights where the checkpoint has them (default)");
  app.add_option("--lora", a.model.loras, "LoRA file to add; N:FILE adds to expert N")->allow_extra_args(false);
  app.add_option("overrides", a.model.overrides, "key.sub=value of all settings, for example sample.steps=20");
  return apps::guarded_main(app, argc, argv, [&] {
    a.model = vmoba::apps::with_checkpoint(a.model);
    return evaluate(a);
  });
}
