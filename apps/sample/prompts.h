// The videos that one call of vmoba-sample makes: one of --prompt, or those of a file of --prompts.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/sample_config.h"

namespace vmoba::apps {

struct VideoOrder {
  std::string prompt, image, last_image;
  SampleConfig settings;  // size, steps, guidance, negative prompt ... of this video
  int64_t seed = 0;
  int64_t index = 0;  // its number in the file, for the noise
  std::string out;    // the name that the file gives; "" where it gives none
};

// The file's videos; what a line does not say is as in `common`. By the file's end:
//   .txt          a prompt on each line, with musubi-tuner's options behind it: --w 832 --h 480 --f 81 --d 5 (seed)
//                 --s 20 (steps) --g 5 or --l 5 (guidance) --fs 3 (shift) --n negative --i first.png --ei last.png
//   .json, .jsonl a list of objects, {"data": [...]}, or an object on each line: prompt (or caption, text),
//                 negative_prompt, image (or image_path), last_image, seed, width, height, frames (or num_frames), fps,
//                 steps (or num_inference_steps), guidance (or guidance_scale), shift, out
// A seed of -1 is drawn. Throws Error(kInput) naming file and line of what is not understood.
std::vector<VideoOrder> read_prompts(const std::string& path, const VideoOrder& common);

// A seed that differs from call to call.
int64_t drawn_seed();

}  // namespace vmoba::apps
