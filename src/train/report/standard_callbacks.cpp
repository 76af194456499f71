#include "train/report/standard_callbacks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/bytes.h"
#include "core/file.h"
#include "core/log.h"
#include "data/video_writer.h"
#include "train/report/loss_curve.h"
#include "train/report/metrics_writer.h"
#include "train/report/page_writer.h"
#include "train/report/tensorboard_writer.h"

namespace vmoba::train {
namespace {

constexpr double kPlainIntervalSeconds = 10;
constexpr int64_t kStripFrames = 6;
constexpr int64_t kGifWidth = 320;  // pixels
constexpr int64_t kMaxGifBytes = int64_t{1} << 30;

double unix_time_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return double(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) / 1000;
}

class ProgressCallback final : public Callback {
 public:
  ProgressCallback() : progress_(terminal_columns(), kPlainIntervalSeconds) {}
  void on_step(const StepReport& report) override { progress_.update(report); }
  void on_checkpoint(int64_t, const std::string& folder) override { log_info("saved {}", folder); }
  void on_validation(int64_t, const std::vector<ValidationVideo>& videos) override {
    for (const ValidationVideo& video : videos) log_info("sampled {} ({})", video.path, video.prompt);
  }
  void on_end() override { progress_.finish(); }

 private:
  Progress progress_;
};

class MetricsCallback final : public Callback {
 public:
  MetricsCallback(const std::string& run_dir, int64_t steps_done)
      : run_dir_(run_dir), writer_(run_dir + "/metrics.jsonl", steps_done) {
    const auto earlier = read_metric(run_dir + "/metrics.jsonl", "gpu_s");
    if (!earlier.empty()) gpu_s_ = earlier.back().second;
  }

  void on_step(const StepReport& report) override {
    nlohmann::ordered_json density;
    for (const auto& [name, value] : report.density)
      if (name != "all") density[name] = value;
    const auto all = report.density.find("all");
    nlohmann::ordered_json record = {{"step", report.step},
                                     {"loss", report.loss},
                                     {"lr", report.lr},
                                     {"grad_norm", report.grad_norm},
                                     {"tokens_per_s", report.tokens_per_s},
                                     {"density", all == report.density.end() ? 1.0 : all->second},
                                     {"density_by_partition", density},
                                     {"step_s", report.step_s},
                                     {"data_wait_s", report.data_wait_s},
                                     {"memory_bytes", report.memory_bytes},
                                     {"failed_clips", report.failed_clips}};
    if (report.mfu > 0) record["mfu"] = std::round(report.mfu * 1e5) / 1e5;
    for (const auto& [name, norm] : report.grad_norm_by_expert) record["grad_norm_" + name] = norm;
    gpu_s_ += report.step_s * double(report.ranks);
    record["samples"] = report.samples;
    record["gpu_s"] = gpu_s_;
    record["time"] = unix_time_s();
    add_layers(report, record);
    if (report.held_out) {
      record["val_loss"] = report.held_out->loss;
      for (const auto& [sigma, loss] : report.held_out->by_sigma)
        record["val_loss_by_sigma"][fmt::format("{}", sigma)] = loss;
    }
    writer_.append(record);
  }
  void on_checkpoint(int64_t, const std::string&) override { writer_.sync(); }

  void on_end() override {
    writer_.sync();
    const auto points = read_metric(run_dir_ + "/metrics.jsonl", "loss");
    if (points.empty()) return;
    write_file_atomically(run_dir_ + "/loss.png",
                          chart_to_png(loss_curve(points, read_metric(run_dir_ + "/metrics.jsonl", "val_loss"))));
    log_info("loss curve: {}/loss.png", run_dir_);
  }

 private:
  // Of each layer, to five digits behind the point.
  static void add_layers(const StepReport& report, nlohmann::ordered_json& record) {
    const auto rounded = [](double density) { return std::round(density * 1e5) / 1e5; };
    for (const LayerDensity& layer : report.density_by_layer) {
      record["density_by_layer"].push_back(rounded(layer.mean));
      record["density_least_head"].push_back(rounded(layer.least_head));
      record["density_greatest_head"].push_back(rounded(layer.greatest_head));
    }
  }

  std::string run_dir_;
  MetricsWriter writer_;
  double gpu_s_ = 0;  // that the steps of the run took, times the ranks
};

// Some frames of a video side by side.
at::Tensor film_strip(const at::Tensor& frames_CFHW) {
  const int64_t frames = frames_CFHW.size(1), count = std::min(kStripFrames, frames);
  std::vector<at::Tensor> shown;
  for (int64_t i = 0; i < count; ++i)
    shown.push_back(frames_CFHW.select(1, count > 1 ? i * (frames - 1) / (count - 1) : 0));
  return at::cat(shown, 2).contiguous();
}

// At most kGifWidth wide.
at::Tensor small_video(const at::Tensor& frames_CFHW) {
  const int64_t height = frames_CFHW.size(2), width = frames_CFHW.size(3);
  if (width <= kGifWidth) return frames_CFHW;
  const at::Tensor small_FCHW =
      at::adaptive_avg_pool2d(frames_CFHW.transpose(0, 1).to(at::kFloat), {height * kGifWidth / width, kGifWidth});
  return small_FCHW.round().to(at::kByte).transpose(0, 1).contiguous();
}

class TensorboardCallback final : public Callback {
 public:
  TensorboardCallback(const RootConfig& config, int64_t steps_done)
      : folder_(config.run.dir + "/tensorboard"), writer_(folder_, steps_done) {
    RootConfig visited = config;
    const std::string yaml = config_to_yaml([&](ConfigVisitor& v) { visited.visit(v); });
    writer_.text(steps_done, "configuration", as_code(yaml));
  }

  void on_step(const StepReport& report) override {
    std::vector<std::pair<std::string, double>> values = {{"train/loss", report.loss},
                                                          {"train/lr", report.lr},
                                                          {"train/grad_norm", report.grad_norm},
                                                          {"speed/tokens_per_s", report.tokens_per_s},
                                                          {"speed/step_s", report.step_s},
                                                          {"speed/data_wait_s", report.data_wait_s},
                                                          {"memory/gib", gib(report.memory_bytes)}};
    if (report.mfu > 0) values.emplace_back("speed/mfu", report.mfu);
    for (const auto& [name, norm] : report.grad_norm_by_expert) values.emplace_back("train/grad_norm_" + name, norm);
    for (const auto& [name, value] : report.density) values.emplace_back("density/" + name, value);
    if (report.held_out) {
      values.emplace_back("validate/loss", report.held_out->loss);
      for (const auto& [sigma, loss] : report.held_out->by_sigma)
        values.emplace_back(fmt::format("validate/loss_sigma_{}", sigma), loss);
    }
    writer_.scalars(report.step, values);
  }
  void on_validation(int64_t step, const std::vector<ValidationVideo>& videos) override {
    for (size_t i = 0; i < videos.size(); ++i) {
      const at::Tensor strip = film_strip(videos[i].frames_CFHW);
      writer_.image(step, fmt::format("samples/{}", i), strip.size(1), strip.size(2), data::encode_png(strip));
      writer_.text(step, fmt::format("samples/{}/prompt", i), as_code(videos[i].prompt));
      const at::Tensor small = small_video(videos[i].frames_CFHW);
      writer_.image(step, fmt::format("samples/{}/video", i), small.size(2), small.size(3),
                    gif_of(small, videos[i].fps));
    }
  }

 private:
  // TensorBoard shows texts as Markdown.
  static std::string as_code(const std::string& text) {
    std::string out = "    ";
    for (const char ch : text) out += ch == '\n' ? std::string("\n    ") : std::string(1, ch);
    return out;
  }
  // TensorBoard has no videos, but shows GIFs among the images in motion.
  std::string gif_of(const at::Tensor& frames_CFHW, double fps) const {
    const std::string path = folder_ + "/sample.gif";
    data::write_video(path, frames_CFHW, fps);
    const std::string bytes = read_file(path, kMaxGifBytes, "a sample as GIF");
    std::filesystem::remove(path);
    return bytes;
  }

  std::string folder_;
  TensorboardWriter writer_;
};

}  // namespace

std::vector<std::unique_ptr<Callback>> standard_callbacks(const RootConfig& config, const data::ClipPlan& plan,
                                                          int64_t first_step) {
  std::vector<std::unique_ptr<Callback>> out;
  out.push_back(std::make_unique<MetricsCallback>(config.run.dir, first_step));
  if (config.train.tensorboard)
    without_ending_the_run([&] { out.push_back(std::make_unique<TensorboardCallback>(config, first_step)); });
  if (config.train.report) without_ending_the_run([&] { out.push_back(std::make_unique<PageWriter>(config, plan)); });
  out.push_back(std::make_unique<ProgressCallback>());
  return out;
}

}  // namespace vmoba::train
