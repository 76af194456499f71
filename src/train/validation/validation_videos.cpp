#include "train/validation/validation_videos.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <filesystem>

#include "core/file.h"
#include "data/dataset.h"
#include "data/picture.h"
#include "data/video_writer.h"
#include "sample/pipeline.h"
#include "train/validation/averaged_weights.h"

namespace vmoba::train {
namespace {

constexpr size_t kCaptions = 2;  // that are shown where sample.prompts is empty

std::vector<std::string> prompts_of(const SampleConfig& config, const data::ClipPlan& plan) {
  if (!config.prompts.empty()) return config.prompts;
  std::vector<std::string> out;
  for (size_t i = 0; i < std::min(kCaptions, plan.clips.size()); ++i) out.push_back(plan.clips[i].caption);
  return out;
}

// First and last frame of a clip, for videos that begin or end with one.
void add_images(const data::Clip& clip, const RootConfig& config, sample::SampleRequest& request) {
  if (config.model.task == "t2v") return;
  const auto frame_at = [&](double time_s) {
    return data::to_unit_range(
        data::read_picture(clip.path, time_s, config.sample.height, config.sample.width, clip.crop));
  };
  request.first_CHW = frame_at(clip.start_s);
  if (model::needs_last_frame(config.model))
    request.last_CHW = frame_at(clip.start_s + double(clip.frames - 1) / clip.fps);
}

}  // namespace

std::vector<ValidationVideo> make_validation_videos(const ValidationParts& parts, int64_t step, bool write) {
  const RootConfig& config = parts.config;
  const AveragedWeights averaged(parts.experts);
  std::vector<model::Dit*> dits;
  for (const Expert& expert : parts.experts) dits.push_back(expert.dit.get());
  sample::Pipeline pipeline({dits, parts.codec.shape(), &parts.codec, &parts.text, parts.image}, config.model,
                            config.experts, resolved(config.sample, config.model, config.text), config.attention,
                            parts.device);
  const std::string folder = config.run.dir + "/samples";
  if (write) without_ending_the_run([&] { std::filesystem::create_directories(folder); });
  const std::vector<std::string> prompts = prompts_of(config.sample, parts.plan);
  std::vector<ValidationVideo> videos;
  for (size_t i = 0; i < prompts.size(); ++i) {
    sample::SampleRequest request{prompts[i], uint64_t(config.sample.seed), int64_t(i)};
    add_images(parts.plan.clips[i % parts.plan.clips.size()], config, request);
    const std::string path = fmt::format("{}/step-{:06d}-{}.mp4", folder, step, i);
    const at::Tensor frames = pipeline.generate(request, [&](int64_t done, int64_t steps) {
      if (parts.on_sampling)
        parts.on_sampling(
            fmt::format("step {}: sampling video {}/{}, step {}/{}", step, i + 1, prompts.size(), done, steps));
    });
    if (write)
      without_ending_the_run([&] {
        write_file_atomically(std::filesystem::path(path).replace_extension(".txt").string(), prompts[i] + "\n");
        data::write_video(path, frames, config.sample.fps);
      });
    videos.push_back({prompts[i], path, frames, config.sample.fps});
  }
  return videos;
}

}  // namespace vmoba::train
