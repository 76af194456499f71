#include "config/run_plan.h"

#include <set>

#include "config/clip_geometry.h"
#include "core/check.h"
#include "core/log.h"
#include "data/hold_out.h"
#include "model/long_captions.h"

namespace vmoba {
namespace {

// Every clip of validate.path.
data::ClipPlan named_clips(const RootConfig& config) {
  data::DataConfig data = config.data;
  data.sets.clear();
  data.path = config.validation.path;
  data.format = "auto";
  return data::plan_clips(data, clip_geometry(config));
}

data::ClipPlan used_clips(const RootConfig& config, const data::ClipPlan& held_out) {
  return data::validation_clips(held_out, config.validation.clips);
}

// Of captions of several clips of a file, each counts once.
void note_long_captions(const RootConfig& config, data::ClipPlan& plan) {
  std::set<std::string> captions;
  for (const data::Clip& clip : plan.clips) captions.insert(clip.caption);
  const int64_t cut = model::count_long_captions(config.text, {captions.begin(), captions.end()});
  if (cut == 0) return;
  plan.notes.push_back(fmt::format(
      "{} of {} captions are longer than text.max_tokens ({}) and are cut there; shorten them, or raise the "
      "key where the model knows more tokens",
      cut, captions.size(), config.text.max_tokens));
  log_warning("data: {}", plan.notes.back());
}

}  // namespace

data::ClipPlan RunPlan::all() const {
  return held_out.clips.empty() ? training : data::joined_plans(training, held_out);
}

RunPlan plan_run(const RootConfig& config, const std::function<void(int64_t, int64_t)>& progress) {
  const ValidateConfig& validation = config.validation;
  RunPlan out;
  out.training = data::plan_clips(config.data, clip_geometry(config), progress);
  note_long_captions(config, out.training);
  if (!validation.enabled()) return out;
  data::SplitPlan split;
  if (validation.path.empty()) {
    split = data::hold_out(out.training, validation.holdout);
  } else {
    split.held_out = named_clips(config);
    split.training = data::without_files_of(split.held_out, out.training);
    if (const size_t left_out = out.training.clips.size() - split.training.clips.size(); left_out > 0)
      log_warning("data: {} clips lie in validate.path as well and are not trained on", left_out);
  }
  out.held_out = used_clips(config, split.held_out);
  out.training = std::move(split.training);
  return out;
}

data::ClipPlan plan_held_out(const RootConfig& config) {
  VMOBA_CHECK_INPUT(config.validation.enabled(),
                    "validate.path: expected held-out clips, found none; set it, or validate.holdout");
  return config.validation.path.empty() ? plan_run(config).held_out : used_clips(config, named_clips(config));
}

}  // namespace vmoba
