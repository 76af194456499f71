// What a run finds of its clips and captions in the cache folder. Read only; owns the mapped shards.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/root_config.h"
#include "data/dataset.h"
#include "train/batch.h"
#include "train/cache/cache_keys.h"
#include "train/cache/tensor_cache.h"

namespace vmoba::train {

// A clip as the data loader can show it.
struct ClipVariant {
  int64_t clip = 0;  // index into the plan
  bool flip = false;
};
// All variants of the plan's clips that a cache can hold. Clips with a random start have one for each sample and none
// here.
std::vector<ClipVariant> cacheable_clips(const data::ClipPlan& plan, const data::DataConfig& config);
// Distinct captions of the plan in the order of their first clips; "" where captions are dropped; the prompts that
// sampling during training uses.
std::vector<std::string> wanted_captions(const RootConfig& config, const data::ClipPlan& plan);

// One clip's part of a batch (its batch size 1) under the names of the cache, and back, fp32.
NamedTensors clip_tensors(const model::ModelConfig& model, const EncodedBatch& one);
EncodedBatch batch_of_clips(const model::ModelConfig& model, const std::vector<NamedTensors>& clips,
                            const model::TextEmbedding& text, at::Device device);
// One text (batch size 1) under the names of model::visit_tensors, and back, fp32. Its tokens, and those of its glyphs,
// are kept without the zeros behind them, so that their number is the length.
NamedTensors text_tensors(const model::TextEmbedding& one);
model::TextEmbedding text_of(const NamedTensors& tensors, int64_t max_tokens, int64_t width);

// What stands in clip_tensors() as well where the text encoder sees a clip's first frame (model::sees_images): the text
// of its caption and, with train.flow.caption_dropout, that of none. `video_1CFHW` as encode_videos has it.
NamedTensors texts_beside(const RootConfig& config, const model::TextEncoder& encoder, const std::string& caption,
                          const at::Tensor& video_1CFHW);
// Of clips that have them; "" among the captions stands for a dropped one.
model::TextEmbedding texts_of_clips(const std::vector<NamedTensors>& clips, const std::vector<std::string>& captions);

class EncodeCache : public data::EncodedClips {
 public:
  // Hashes the files of `plan` that the folder does not remember. Throws Error(kInput) where cache.dir is missing.
  EncodeCache(const RootConfig& config, const data::ClipPlan& plan);

  std::optional<data::EncodedClip> find(int64_t clip, bool flip) const override;
  // Batch size 1, on the CPU; nothing where the caption is not there.
  std::optional<model::TextEmbedding> find_text(const std::string& caption) const;

  struct Coverage {
    int64_t clips = 0, clips_found = 0, random_clips = 0, texts = 0, texts_found = 0;
    bool complete() const { return clips == clips_found && random_clips == 0 && texts == texts_found; }
  };
  Coverage coverage() const { return coverage_; }

 private:
  model::TextEncoderConfig text_;
  int64_t text_width_;
  TensorCache tensors_;
  FileHashes files_;
  CacheKeys keys_;
  std::map<std::pair<int64_t, bool>, std::string> clip_keys_;
  Coverage coverage_;
};

// What cache.dir holds for the run, logged; null where the configuration uses no cache. Throws Error(kInput) where
// cache.mode require finds something missing.
std::unique_ptr<EncodeCache> open_encode_cache(const RootConfig& config, const data::ClipPlan& plan);

// From headers alone: that the cache, or else the text encoder, gives embeddings of the model's width.
void check_captions(const RootConfig& config, const data::ClipPlan& plan);

}  // namespace vmoba::train
