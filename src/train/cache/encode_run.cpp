#include "train/cache/encode_run.h"

#include <ATen/ATen.h>

#include <chrono>

#include "config/device.h"
#include "config/run_plan.h"
#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"
#include "data/prefetch.h"
#include "data/video_reader.h"
#include "train/cache/encode_cache.h"
#include "train/cache/lazy_encoders.h"
#include "train/dist/launch.h"
#include "train/signals.h"

namespace vmoba::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kLogIntervalS = 30, kStatusIntervalS = 0.5;

// Logs how far a phase is: a status line on a terminal, else a line now and then.
class PhaseProgress {
 public:
  PhaseProgress(std::string what, int64_t total, double total_weight)
      : what_(std::move(what)), total_(total), total_weight_(total_weight), start_(Clock::now()) {}
  ~PhaseProgress() { set_status_line(""); }

  void add(double weight) {
    done_ += 1;
    done_weight_ += weight;
    const double now_s = seconds();
    const bool terminal = terminal_columns() > 0;
    if (done_ < total_ && now_s - shown_s_ < (terminal ? kStatusIntervalS : kLogIntervalS)) return;
    shown_s_ = now_s;
    const std::string line = encode_progress_line(what_, done_, total_, done_weight_ / total_weight_, now_s);
    if (terminal && done_ < total_)
      set_status_line(line);
    else
      log_info("{}", line);
  }

 private:
  double seconds() const { return seconds_since(start_); }

  std::string what_;
  int64_t total_, done_ = 0;
  double total_weight_, done_weight_ = 0, shown_s_ = 0;
  Clock::time_point start_;
};

class EncodeRun {
 public:
  EncodeRun(const RootConfig& config, const EncodeOptions& options)
      : config_(config),
        options_(options),
        device_(share_device(config.run, options.share)),
        plan_(plan_run(config).all()),
        writer_(config.cache.dir, options.share.rank, config.cache.shard_mb << 20),
        found_(config.cache.dir),
        files_(config.cache.dir, options.share.rank),
        keys_(config, files_) {
    for (const data::DroppedClip& drop : plan_.dropped) log_warning("dropped {}: {}", drop.path, drop.reason);
    data::check_failures(config.data, plan_);
  }

  int run() {
    make_texts();
    make_clips();
    writer_.flush();
    files_.save();
    if (stop_signal() != 0) {
      log_info("stopped by {}; run the same command again to continue", stop_reason(stop_signal()));
      return kExitStopped;
    }
    log_info("cache {}: {} entries were there, {} made ({} MB), {} clips cannot be decoded", config_.cache.dir, kept_,
             made_, writer_.written_bytes() >> 20, failed_);
    if (options_.prune) prune();
    return 0;
  }

 private:
  static at::Device share_device(const RunConfig& run, const EncodeShare& share) {
    const at::Device device = prepare_device(run);
    return device.is_cuda()
               ? at::Device(at::kCUDA, at::DeviceIndex(share.local_rank % at::detail::getCUDAHooks().deviceCount()))
               : device;
  }

  bool is_mine(size_t item) const { return int64_t(item) % options_.share.ranks == options_.share.rank; }

  // Whether `key` must be made, asked once for each. A clip that failed is tried again.
  bool is_missing(const std::string& key) {
    if (!asked_.insert(key).second) return false;  // the same content under another name
    const bool there = found_.has(key) && (!options_.verify || found_.is_sound(key));
    kept_ += there ? 1 : 0;
    return !there;
  }

  void make_texts() {
    std::vector<std::pair<std::string, std::string>> todo;  // key, caption
    const std::vector<std::string> captions = wanted_captions(config_, plan_);
    for (size_t i = 0; i < captions.size(); ++i)
      if (const std::string key = keys_.text(captions[i]); is_mine(i) && is_missing(key))
        todo.emplace_back(key, captions[i]);
    if (todo.empty()) return;
    const CachedTextEncoder encoder(config_, device_, nullptr);
    PhaseProgress progress("captions", int64_t(todo.size()), double(todo.size()));
    for (const auto& [key, caption] : todo) {
      if (stop_signal() != 0) return;
      writer_.put(key, text_tensors(encoder.encode({caption})));
      made_ += 1;
      progress.add(1);
    }
    writer_.flush();
  }

  struct Job {
    ClipVariant variant;
    std::string key;
  };
  struct Decoded {
    at::Tensor video_CFHW;
    std::string failure;
    bool transient = false;  // of the storage, not of the file
  };

  std::vector<Job> clip_jobs() {
    std::vector<Job> jobs;
    const std::vector<ClipVariant> variants = cacheable_clips(plan_, config_.data);
    for (size_t i = 0; i < variants.size(); ++i) {
      if (!is_mine(i)) continue;
      const std::string key = keys_.clip(plan_, variants[i].clip, variants[i].flip);
      if (is_missing(key)) jobs.push_back({variants[i], key});
    }
    int64_t random = 0;
    for (const data::Clip& clip : plan_.clips) random += clip.random_start ? 1 : 0;
    if (random > 0)
      log_warning("{} clips have a random start (data.frame_extraction random) and are encoded while training", random);
    return jobs;
  }

  Decoded decode(const Job& job, int threads, const std::atomic<bool>& cancel) const {
    const data::Clip& clip = plan_.clips[size_t(job.variant.clip)];
    try {
      return {data::decode_planned_clip(plan_, config_.data, job.variant.clip, clip.start_s, job.variant.flip, threads,
                                        outage_, cancel),
              "", false};
    } catch (const data::MediaError& e) {
      if (cancel) throw;
      return {{}, e.what(), e.transient()};
    }
  }

  double tokens(const Job& job) const {
    const data::Clip& clip = plan_.clips[size_t(job.variant.clip)];
    return double(plan_.buckets[size_t(clip.bucket)].tokens);
  }

  void make_clips() {
    if (stop_signal() != 0) return;
    const std::vector<Job> jobs = clip_jobs();
    if (jobs.empty()) return;
    double total_tokens = 0;
    for (const Job& job : jobs) total_tokens += tokens(job);
    const LazyCodec codec(config_.codec, device_);
    const CachedTextEncoder text(config_, device_, nullptr);
    const auto image = config_.model.image_dim > 0 ? make_lazy_image_encoder(config_.image_encoder, device_) : nullptr;
    const int64_t threads = data::decode_threads(config_.data);
    const int64_t workers = std::min(threads, config_.data.prefetch_clips);
    data::OrderedPrefetcher<Decoded> decoded(
        workers, config_.data.prefetch_clips, [&](int64_t number, const std::atomic<bool>& cancel) {
          if (number >= int64_t(jobs.size())) return Decoded{};
          return decode(jobs[size_t(number)], int(std::max<int64_t>(1, threads / workers)), cancel);
        });
    PhaseProgress progress("clips", int64_t(jobs.size()), total_tokens);
    for (const Job& job : jobs) {
      if (stop_signal() != 0) return;
      const auto frames = decoded.next_unless([] { return stop_signal() != 0; });
      if (!frames) return;
      store(job, *frames, codec, text, image.get());
      progress.add(tokens(job));
    }
  }

  void store(const Job& job, const Decoded& decoded, const model::Codec& codec, const model::TextEncoder& text,
             const model::ImageEncoder* image) {
    if (!decoded.video_CFHW.defined()) {
      log_warning("{} cannot be decoded: {}", plan_.clips[size_t(job.variant.clip)].path, decoded.failure);
      if (!decoded.transient) writer_.put_failure(job.key, decoded.failure);
      failed_ += 1;
      failed_files_.insert(plan_.clips[size_t(job.variant.clip)].path);
      const int64_t allowed = data::allowed_failures(config_.data, plan_);
      if (int64_t(failed_files_.size()) <= allowed) return;
      writer_.flush();
      files_.save();
      throw_input(
          "expected at most {} files that cannot be read (data.max_failed), found {}, the last one {}: {}; mend the "
          "storage or the files, or raise the key, and run the same command again to continue",
          allowed, failed_files_.size(), plan_.clips[size_t(job.variant.clip)].path, decoded.failure);
    }
    const at::Tensor video_BCFHW = data::to_unit_range(decoded.video_CFHW.to(device_)).unsqueeze(0);
    NamedTensors tensors = clip_tensors(config_.model, encode_videos(config_.model, codec, image, video_BCFHW));
    if (config_.cache.latent_dtype == "bf16")
      for (auto& [name, tensor] : tensors) tensor = tensor.to(at::kBFloat16);
    tensors.merge(texts_beside(config_, text, plan_.clips[size_t(job.variant.clip)].caption, video_BCFHW));
    writer_.put(job.key, tensors);
    made_ += 1;
  }

  void prune() {
    std::set<std::string> keys;
    for (const ClipVariant& variant : cacheable_clips(plan_, config_.data))
      keys.insert(keys_.clip(plan_, variant.clip, variant.flip));
    for (const std::string& caption : wanted_captions(config_, plan_)) keys.insert(keys_.text(caption));
    log_info("pruned {} MB that this configuration does not need", TensorCache(config_.cache.dir).prune(keys) >> 20);
  }

  const RootConfig& config_;
  EncodeOptions options_;
  at::Device device_;
  data::ClipPlan plan_;
  TensorCacheWriter writer_;
  TensorCache found_;
  FileHashes files_;
  CacheKeys keys_;
  mutable Outage outage_;
  std::set<std::string> asked_, failed_files_;
  int64_t kept_ = 0, made_ = 0, failed_ = 0;
};

}  // namespace

EncodeShare share_from_environment() {
  struct Launcher {
    const char *rank, *ranks, *local_rank;
  };
  constexpr Launcher kLaunchers[] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
                                     {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
                                     {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"}};
  for (const Launcher& launcher : kLaunchers) {
    const auto rank = dist::launcher_number({launcher.rank}), ranks = dist::launcher_number({launcher.ranks});
    if (rank && ranks) return {*rank, *ranks, dist::launcher_number({launcher.local_rank}).value_or(*rank)};
  }
  return {};
}

int encode_dataset(const RootConfig& config, const EncodeOptions& options) {
  VMOBA_CHECK_INPUT(!config.cache.dir.empty(), "cache.dir: expected a folder to write to, found nothing");
  VMOBA_CHECK_INPUT(options.share.ranks >= 1 && options.share.rank >= 0 && options.share.rank < options.share.ranks,
                    "expected a rank below the number of ranks, found {} of {}", options.share.rank,
                    options.share.ranks);
  VMOBA_CHECK_INPUT(!options.prune || options.share.ranks == 1, "--prune: expected a single process, found {}",
                    options.share.ranks);
  install_stop_signals();
  return EncodeRun(config, options).run();
}

std::string encode_progress_line(const std::string& what, int64_t done, int64_t total, double share_done,
                                 double seconds) {
  const auto left_s = share_done > 0 ? int64_t(seconds / share_done * (1 - share_done) + 0.5) : 0;
  return fmt::format("{} {}/{} ({:.0f} %), {:.2f}/s, {}:{:02}:{:02} left", what, done, total, 100 * share_done,
                     seconds > 0 ? double(done) / seconds : 0.0, left_s / 3600, left_s / 60 % 60, left_s % 60);
}

}  // namespace vmoba::train
