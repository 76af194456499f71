// Under which keys encodings are kept: functions of a file's content, of the clip cut from it, and of every setting
// that the encoding depends on, so that whatever changes gets a new key.
#pragma once
#include <string>

#include "config/root_config.h"
#include "data/clip_plan.h"
#include "train/cache/file_hashes.h"

namespace vmoba::train {

class CacheKeys {
 public:
  // Hashes the encoders' weights. `files` must outlive it.
  CacheKeys(const RootConfig& config, FileHashes& files);

  // Of clip `clip` of the plan, mirrored or not; hashes its file.
  std::string clip(const data::ClipPlan& plan, int64_t clip, bool flip);
  std::string text(const std::string& caption) const;

 private:
  FileHashes& files_;
  std::string clip_settings_, text_settings_;
  bool sees_images_;  // the text encoder, so that a clip's caption is encoded with it
};

}  // namespace vmoba::train
