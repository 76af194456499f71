// Evaluations as JSON, which can be read back as a baseline, and as a table.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/json.h"
#include "train/validation/evaluation.h"
#include "train/validation/paired_difference.h"

namespace vmoba::train {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 30;

nlohmann::ordered_json to_json(const PairedDifference& difference) {
  return {{"percent", difference.percent},
          {"low", difference.low},
          {"high", difference.high},
          {"better", difference.better}};
}

std::string sigma_name(double sigma) {
  return fmt::format("{}", sigma);
}

nlohmann::ordered_json to_json(const SettingLosses& setting, const Evaluation& evaluation, const Baseline& baseline) {
  nlohmann::ordered_json out = {{"name", setting.name},
                                {"density", setting.density},
                                {"density_by_layer", setting.density_by_layer},
                                {"loss", setting.mean()},
                                {"losses", setting.losses}};
  nlohmann::ordered_json levels, differences;
  for (size_t level = 0; level < evaluation.sigmas.size(); ++level) {
    const std::vector<double> mine = setting.of_level(level);
    double sum = 0;
    for (const double loss : mine) sum += loss;
    levels[sigma_name(evaluation.sigmas[level])] = sum / double(mine.size());
    differences[sigma_name(evaluation.sigmas[level])] =
        to_json(paired_difference(mine, baseline.losses.of_level(level)));
  }
  out["loss_by_sigma"] = levels;
  out["difference"] = to_json(paired_difference(setting.by_clip(), baseline.losses.by_clip()));
  out["difference_by_sigma"] = differences;
  return out;
}

}  // namespace

std::string evaluation_to_json(const Evaluation& evaluation, const Baseline& baseline) {
  nlohmann::ordered_json out = {{"seed", evaluation.seed},
                                {"sigmas", evaluation.sigmas},
                                {"clips", evaluation.clips},
                                {"baseline", baseline.name},
                                {"settings", nlohmann::ordered_json::array()}};
  for (const SettingLosses& setting : evaluation.settings)
    out["settings"].push_back(to_json(setting, evaluation, baseline));
  // File names need not be UTF-8.
  return out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string evaluation_to_text(const Evaluation& evaluation, const Baseline& baseline) {
  size_t width = 8;
  for (const SettingLosses& setting : evaluation.settings) width = std::max(width, setting.name.size() + 2);
  std::string out = fmt::format("{} clips, differences to {} in percent with 95 % intervals\n{:<{}}{:>9}{:>10}{:>26}",
                                evaluation.clips.size(), baseline.name, "setting", width, "density", "loss", "change");
  for (const double sigma : evaluation.sigmas) out += fmt::format("{:>12}", "noise " + sigma_name(sigma));
  for (const SettingLosses& setting : evaluation.settings) {
    const PairedDifference all = paired_difference(setting.by_clip(), baseline.losses.by_clip());
    out += fmt::format("\n{:<{}}{:>9.4f}{:>10.5f}{:>26}", setting.name, width, setting.density, setting.mean(),
                       fmt::format("{:+.2f} [{:+.2f}, {:+.2f}]", all.percent, all.low, all.high));
    for (size_t level = 0; level < evaluation.sigmas.size(); ++level)
      out += fmt::format("{:>+12.2f}",
                         paired_difference(setting.of_level(level), baseline.losses.of_level(level)).percent);
  }
  return out + "\n";
}

namespace {

// [clip][noise level]
std::vector<std::vector<double>> losses_of(const nlohmann::json& setting, const Evaluation& evaluation,
                                           const std::string& path) {
  auto losses = setting.at("losses").get<std::vector<std::vector<double>>>();
  const bool whole = losses.size() == evaluation.clips.size() &&
                     std::all_of(losses.begin(), losses.end(),
                                 [&](const auto& of_clip) { return of_clip.size() == evaluation.sigmas.size(); });
  VMOBA_CHECK_INPUT(whole, "'{}': expected losses of {} clips at {} noise levels, found others; evaluate again", path,
                    evaluation.clips.size(), evaluation.sigmas.size());
  return losses;
}

}  // namespace

Baseline read_baseline(const std::string& path, const std::string& name, const Evaluation& evaluation) {
  const nlohmann::json file = read_json(path, kMaxFileBytes, "an evaluation (vmoba-eval --json)");
  return use_json(path, [&]() -> Baseline {
    VMOBA_CHECK_INPUT(file.is_object(), "'{}': expected what vmoba-eval --json wrote, found {}", path,
                      file.type_name());
    const auto same = [&](const char* key, const auto& mine) {
      VMOBA_CHECK_INPUT(file.at(key) == nlohmann::json(mine),
                        "'{}': expected the {} of this evaluation, found others; evaluate both with the same --data, "
                        "--clips, --sigmas and --seed",
                        path, key);
    };
    same("clips", evaluation.clips);
    same("sigmas", evaluation.sigmas);
    same("seed", evaluation.seed);
    std::vector<std::string> known;
    for (const nlohmann::json& setting : file.at("settings")) {
      known.push_back(setting.at("name").get<std::string>());
      if (!name.empty() && known.back() != name) continue;
      return {fmt::format("{} of {}", known.back(), path), {known.back(), losses_of(setting, evaluation, path)}};
    }
    throw_input("'{}': expected a setting named {}, found {}", path, name.empty() ? "anything" : name,
                fmt::join(known, ", "));
  });
}

}  // namespace vmoba::train
