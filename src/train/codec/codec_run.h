// A training of a codec from its clips to its file: schedule, saves, quality on held-out clips.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "train/codec/codec_clips.h"
#include "train/codec/codec_trainer.h"

namespace vmoba::train {

struct CodecRunConfig {
  CodecTrainerConfig trainer;
  std::string out;     // the safetensors file
  int64_t steps = 0;   // 0: until `seconds` are over
  double seconds = 0;  // since `start`; 0: until `steps` are done
  double lr = 1e-3;    // at its highest: it rises over 200 steps and falls to 0 as a cosine
  int64_t batch = 16;  // crops of a step
  CropSize crop = {17, 96, 96};
  double save_every_s = 30;

  // Throws Error(kInput) naming the option of vmoba-train-codec.
  void validate() const;
};

struct CodecRunResult {
  int64_t steps = 0;
  double first_loss = 0, last_loss = 0;  // means of the first and the last tenth, at most 100 steps each
  double psnr_db = 0;                    // mean over the held-out clips; 0 without any
  bool stopped = false;                  // by a signal, before the end
};

// Clips as decode_clips gives them; `held_out_CFHW` may be empty. Saves every `save_every_s` and at the end, also where
// a signal (train/signals.h) ends it.
CodecRunResult run_codec_training(const CodecRunConfig& config, const std::vector<at::Tensor>& clips_CFHW,
                                  const std::vector<at::Tensor>& held_out_CFHW, at::Device device,
                                  std::chrono::steady_clock::time_point start);

// Peak signal-to-noise ratio of what the codec makes of each clip, in dB: the mean. Frames behind 1 + 4n are left out.
double mean_psnr(const model::Codec& codec, const std::vector<at::Tensor>& clips_CFHW);

}  // namespace vmoba::train
