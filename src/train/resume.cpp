#include "train/resume.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "core/check.h"
#include "core/file.h"
#include "core/log.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checksums.h"
#include "train/checkpoint/run_folder.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfigBytes = 1 << 20;

std::string config_path(const std::string& checkpoint) {
  return checkpoint + "/state/config.yaml";
}

// A folder of checkpoints, not a checkpoint.
bool is_run_folder(const std::string& path) {
  return !fs::exists(manifest_path(path)) && !fs::exists(path + "/transformer") && !checkpoint_steps(path).empty();
}

// The run's folder that `resume` speaks of; "" where it names a checkpoint.
std::string named_run(const std::string& run_dir, const ResumeRequest& resume) {
  if (resume.from == "latest") return run_dir;
  return is_run_folder(resume.from) ? resume.from : "";
}

// Newest first.
std::vector<std::string> checkpoints_of(const std::string& run_dir) {
  std::vector<std::string> out;
  for (const std::string& name : checkpoint_names(run_dir)) out.push_back((fs::path(run_dir) / name).string());
  std::reverse(out.begin(), out.end());
  return out;
}

// Why a folder is no checkpoint of the run it lies in; "" where it is one, or where an earlier version left that open.
std::string stray(const std::string& checkpoint, const std::optional<std::string>& folder_id) {
  const Manifest manifest = read_manifest(checkpoint);
  const int64_t step = step_in_name(fs::path(checkpoint).filename().string());
  if (manifest.state.step != step) return fmt::format("its state is of step {}", manifest.state.step);
  if (folder_id && !manifest.record.folder.empty() && manifest.record.folder != *folder_id)
    return "another run's folder made it; name it with --resume to go on from it";
  return "";
}

// All problems that the ranks find together, of a checkpoint that all see.
std::vector<std::string> problems_together(dist::World& world, const std::string& checkpoint) {
  const dist::Patience patience(world);
  const std::vector<std::string> own = checkpoint_problems(checkpoint, world.rank(), world.size());
  const std::string text = fmt::format("{}", fmt::join(own, "\n"));
  std::vector<std::string> out;
  for (const std::string& of_rank : dist::all_gather_text(world.control(), text)) {
    std::istringstream lines(of_rank);
    for (std::string line; std::getline(lines, line);)
      if (std::find(out.begin(), out.end(), line) == out.end()) out.push_back(line);
  }
  return out;
}

std::string few(const std::vector<std::string>& problems) {
  constexpr size_t kShown = 3;
  const std::vector<std::string> shown(problems.begin(),
                                       problems.begin() + ptrdiff_t(std::min(kShown, problems.size())));
  return fmt::format("{}{}", fmt::join(shown, "; "),
                     problems.size() > kShown ? fmt::format("; and {} more", problems.size() - kShown) : "");
}

// The first rank's word.
std::string from_first(dist::World& world, const std::string& text) {
  return dist::all_gather_text(world.control(), world.rank() == 0 ? text : "").front();
}

std::string strays_text(const std::string& checkpoint, const std::optional<std::string>& run) {
  try {
    return stray(checkpoint, run);
  } catch (const Error& e) {
    return e.what();
  }
}

std::string newest_whole(dist::World& world, const std::string& run_dir) {
  const std::string list = from_first(world, fmt::format("{}", fmt::join(checkpoints_of(run_dir), "\n")));
  std::istringstream lines(list);
  std::vector<std::string> skipped;
  std::optional<std::string> run;
  if (world.rank() == 0 && fs::exists(fs::path(run_dir) / "run.json")) run = read_run_folder(run_dir).id;
  for (std::string checkpoint; std::getline(lines, checkpoint);) {
    std::string reason = from_first(world, strays_text(checkpoint, run));
    if (reason.empty()) reason = few(problems_together(world, checkpoint));
    if (reason.empty()) return checkpoint;
    skipped.push_back(checkpoint);
    if (world.rank() == 0) log_warning("--resume: passing over {}: {}", checkpoint, reason);
  }
  VMOBA_CHECK_INPUT(
      skipped.empty(),
      "--resume: expected a whole checkpoint in '{}', found {} that cannot be used ({}); repair one, name "
      "one elsewhere, or start anew without --resume",
      run_dir, skipped.size(), fmt::join(skipped, ", "));
  return "";
}

void warn_of_unverified(const std::string& checkpoint) {
  if (read_manifest(checkpoint).checksums.empty())
    log_warning(
        "{}: an earlier version wrote it without checksums and run id; whether its bytes changed on disk cannot "
        "be verified",
        checkpoint);
}

bool names(const std::vector<std::string>& overrides, const std::string& key) {
  return std::any_of(overrides.begin(), overrides.end(),
                     [&](const std::string& text) { return text.starts_with(key + "="); });
}

// A path that is no checkpoint: refused by what it is, where that can be told.
void check_place(const std::string& from) {
  if (from == "latest" || fs::exists(manifest_path(from))) return;
  VMOBA_CHECK_INPUT(fs::is_directory(from),
                    "--resume: expected `latest`, a checkpoint's or a run's folder, found none at '{}'", from);
  const fs::path whole = fs::absolute(from) / "";  // with its slash, so that the parent is the folder itself
  const std::string parent = whole.parent_path().parent_path().string();
  VMOBA_CHECK_INPUT(!fs::exists(manifest_path(parent)),
                    "--resume: expected a checkpoint's folder, found a part of one at '{}'; name {}", from, parent);
}

}  // namespace

RootConfig config_of_checkpoint(const ResumeRequest& resume, const std::vector<std::string>& overrides) {
  check_place(resume.from);
  std::string run_dir = RunConfig().dir;
  for (const std::string& text : overrides)
    if (text.starts_with("run.dir=")) run_dir = text.substr(std::string("run.dir=").size());
  std::vector<std::string> candidates = {resume.from};
  if (const std::string run = named_run(run_dir, resume); !run.empty()) candidates = checkpoints_of(run);
  for (const std::string& checkpoint : candidates) {
    if (!fs::exists(config_path(checkpoint))) continue;
    RootConfig config = load_root_config(config_path(checkpoint), overrides);
    // The steps that the checkpoint has came from its own train.epochs.
    if (names(overrides, "train.epochs") && !names(overrides, "train.steps")) config.train.steps = TrainConfig().steps;
    if (!names(overrides, "run.dir")) {
      const fs::path place = fs::path(checkpoint).lexically_normal();
      const fs::path parent = (place.has_filename() ? place : place.parent_path()).parent_path();
      config.run.dir = (parent.empty() ? fs::path(".") : parent).string();
    }
    log_info("--resume without --config: the configuration of {}, run.dir {}", checkpoint, config.run.dir);
    return config;
  }
  throw_input(
      "--resume {}: expected a checkpoint whose configuration can be taken, found none in '{}'; pass --config "
      "FILE, or run.dir=FOLDER beside --resume latest",
      resume.from, resume.from == "latest" ? run_dir : resume.from);
}

std::string find_checkpoint(dist::World& world, const std::string& run_dir, const ResumeRequest& resume) {
  if (resume.from.empty()) return "";
  const std::string run = from_first(world, named_run(run_dir, resume));
  std::string checkpoint = resume.from;
  if (!run.empty()) {
    checkpoint = newest_whole(world, run);
    if (checkpoint.empty()) {
      if (world.rank() == 0)
        log_warning("--resume latest: no checkpoint in {}, starting at step 0", fs::absolute(run_dir).string());
      return "";
    }
    if (world.rank() == 0 && resume.from != "latest")
      log_info("--resume {}: a run's folder; its newest checkpoint is {}", resume.from, checkpoint);
  } else {
    check_place(checkpoint);
    VMOBA_CHECK_INPUT(
        fs::exists(manifest_path(checkpoint)),
        "--resume: expected a checkpoint (state/trainer.json) or a run's folder with checkpoints at '{}', "
        "found neither",
        checkpoint);
    const std::vector<std::string> problems = problems_together(world, checkpoint);
    VMOBA_CHECK_INPUT(problems.empty(), "checkpoint '{}' is damaged: {}; resume from another one", checkpoint,
                      few(problems));
  }
  if (world.rank() == 0) warn_of_unverified(checkpoint);
  return checkpoint;
}

namespace {

// Hashes of the clips, and of their files' sizes and samples; empty where an earlier version did not write them.
struct RecordedClips {
  std::string plan, sizes, samples;
};

RecordedClips recorded_clips(const std::string& recorded) {
  std::vector<std::string> parts(1);
  for (const char c : recorded) {
    if (c == kFilesMark)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  parts.resize(3);
  return {parts[0], parts[1], parts[2]};
}

}  // namespace

std::vector<ConfigChange> allowed_changes(const std::string& checkpoint, const Manifest& manifest,
                                          const RootConfig& config, const RunRecord& now) {
  std::vector<ConfigChange> out;
  const auto add = [&](const std::string& key, const std::string& old_value, const std::string& new_value) {
    out.push_back({manifest.state.step, key, old_value, new_value});
  };
  const RunRecord& before = manifest.record;
  if (fs::exists(config_path(checkpoint))) {
    const std::string text = read_file(config_path(checkpoint), kMaxConfigBytes, "a checkpoint's configuration");
    std::vector<std::string> refused;
    for (const ChangedKey& changed : changed_keys(text, config_path(checkpoint), config)) {
      if (changed.rule == ResumeRule::kModel)
        refused.push_back(fmt::format("{}: expected {} as in the checkpoint, found {}", changed.key, changed.old_value,
                                      changed.new_value));
      else
        add(changed.key, changed.old_value, changed.new_value);
    }
    VMOBA_CHECK_INPUT(
        refused.empty(),
        "{}; these values are part of the model or of what its weights mean: restore them, or start a new "
        "run",
        fmt::join(refused, "\n"));
  }
  const bool same_type =
      std::none_of(out.begin(), out.end(), [](const ConfigChange& c) { return c.key == "model.weights_dtype"; });
  VMOBA_CHECK_INPUT(before.base.empty() || before.base == now.base || !same_type,
                    "model.weights: expected the weights beside which these adapters were trained (hash {}), found "
                    "others (hash {}); restore them, or begin a run with lora.init_from",
                    before.base, now.base);
  const RecordedClips clips_before = recorded_clips(before.clip_plan), clips_now = recorded_clips(now.clip_plan);
  const auto differ = [](const std::string& old_hash, const std::string& new_hash) {
    return !old_hash.empty() && old_hash != new_hash;
  };
  if (differ(clips_before.plan, clips_now.plan))
    add("clip plan", fmt::format("{} clips ({})", before.clips, clips_before.plan),
        fmt::format("{} clips ({})", now.clips, clips_now.plan));
  else if (differ(clips_before.sizes, clips_now.sizes))
    add("files of the clips", fmt::format("sizes ({})", clips_before.sizes),
        fmt::format("others ({}) of the same clips", clips_now.sizes));
  else if (differ(clips_before.samples, clips_now.samples))
    add("files of the clips", fmt::format("bytes ({})", clips_before.samples),
        fmt::format("others ({}) of the same sizes", clips_now.samples));
  if (!before.version.empty() && before.version != now.version) add("program", before.version, now.version);
  return out;
}

std::string changes_text(const std::string& checkpoint, const std::vector<ConfigChange>& changes) {
  if (changes.empty()) return "";
  std::string out = fmt::format(
      "going on from {} with other values than it was made with; the run is no longer the "
      "exact continuation:",
      checkpoint);
  for (const ConfigChange& c : changes) out += fmt::format("\n  {}: {} -> {}", c.key, c.old_value, c.new_value);
  return out;
}

}  // namespace vmoba::train
