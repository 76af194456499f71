#include "train/report/contact_sheet.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "data/dataset.h"
#include "data/jpeg.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostClips = 24;
constexpr int64_t kMostLooked = 1 << 14;  // samples, in search of every bucket
constexpr int64_t kHeight = 144;          // pixels of a frame in the sheet
constexpr int64_t kMaxIndexBytes = int64_t{64} << 20;
constexpr double kPatience_s = 3;  // for storage that fails: a picture is not worth a wait

// All that the pictures depend on.
std::string key_of(const RootConfig& config, const data::ClipPlan& plan) {
  return hash_text(content_hash(fmt::format("{} {} {} {}", data::plan_to_json(plan), config.seed,
                                            config.train.micro_batch, config.data.horizontal_flip)));
}

bool is_there(const std::string& index_path, const std::string& key) {
  if (!fs::exists(index_path)) return false;
  const auto index = try_parse_json(read_file(index_path, kMaxIndexBytes, "the contact sheet"));
  return index && index->is_object() && index->value("key", nlohmann::json()) == key;
}

// First, middle and last frame side by side, no higher than kHeight.
at::Tensor strip_of(const at::Tensor& video_CFHW) {
  const int64_t frames = video_CFHW.size(1), height = std::min(kHeight, video_CFHW.size(2));
  const int64_t width = std::max<int64_t>(1, video_CFHW.size(3) * height / video_CFHW.size(2));
  std::vector<at::Tensor> shown;
  for (const int64_t frame : std::set<int64_t>{0, frames / 2, frames - 1})
    shown.push_back(at::adaptive_avg_pool2d(video_CFHW.select(1, frame).to(at::kFloat), {height, width}));
  return at::cat(shown, 2).round().to(at::kByte);
}

}  // namespace

std::vector<int64_t> contact_sheet_samples(const data::ClipPlan& plan, uint64_t seed, int64_t micro_batch,
                                           int64_t most) {
  const data::SampleOrder order(plan, seed, micro_batch);
  std::vector<std::vector<int64_t>> by_bucket(plan.buckets.size());
  std::set<int64_t> clips;
  for (int64_t sample = 0; sample < std::min(order.samples_per_epoch(), kMostLooked); ++sample) {
    const int64_t clip = order.clip_of(sample);
    if (clips.insert(clip).second) by_bucket[size_t(plan.clips[size_t(clip)].bucket)].push_back(sample);
  }
  std::vector<int64_t> out;
  for (size_t round = 0; int64_t(out.size()) < most; ++round) {
    const size_t before = out.size();
    for (const std::vector<int64_t>& samples : by_bucket)
      if (round < samples.size() && int64_t(out.size()) < most) out.push_back(samples[round]);
    if (out.size() == before) break;
  }
  std::sort(out.begin(), out.end());
  return out;
}

void write_contact_sheet(const std::string& folder, const RootConfig& config, const data::ClipPlan& plan,
                         const std::atomic<bool>& cancel) {
  const std::string index_path = folder + "/index.json", key = key_of(config, plan);
  if (is_there(index_path, key)) return;
  const auto seed = uint64_t(config.seed);
  const data::SampleOrder order(plan, seed, config.train.micro_batch);
  data::DataConfig impatient = config.data;
  impatient.patience_s = std::min(impatient.patience_s, kPatience_s);
  Outage outage;
  nlohmann::ordered_json index = {{"key", key}, {"clips", nlohmann::ordered_json::array()}};
  fs::create_directories(folder);
  for (const int64_t sample : contact_sheet_samples(plan, seed, config.train.micro_batch, kMostClips)) {
    if (cancel) return;
    const int64_t number = order.clip_of(sample);
    const data::Clip& clip = plan.clips[size_t(number)];
    const data::Bucket& bucket = plan.buckets[size_t(clip.bucket)];
    const data::ClipDraw draw = data::draw_clip(clip, config.data, seed, sample);
    const std::string file = fmt::format("{:03d}.jpg", index["clips"].size());
    try {
      const at::Tensor video =
          data::decode_planned_clip(plan, impatient, number, draw.start_s, draw.flip, /*threads=*/1, outage, cancel);
      write_file_atomically(folder + "/" + file, data::encode_jpeg(strip_of(video)));
    } catch (const data::MediaError& error) {
      log_debug("contact sheet: {} is left out: {}", clip.path, error.what());
      continue;
    }
    index["clips"].push_back({{"file", file},
                              {"caption", clip.caption},
                              {"source", clip.path},
                              {"frames", clip.frames},
                              {"height", bucket.height},
                              {"width", bucket.width},
                              {"sample", sample}});
  }
  write_file_atomically(index_path, index.dump(1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace vmoba::train
