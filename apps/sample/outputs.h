// Where vmoba-sample writes: names, and that they can be written, before anything is loaded.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "apps/sample/prompts.h"

namespace vmoba::apps {

// The name of each video. One video: `out` itself. Several, or one of a file of prompts: their own names, or
// "NAME-000.mp4" of `out` "NAME.mp4" (one: "NAME.mp4"), or "000.mp4" in the folder `out`, which has no extension.
// Throws Error(kInput) where two have one name.
std::vector<std::string> output_names(const std::string& out, const std::vector<VideoOrder>& orders, bool of_file);

// Throws Error(kInput) where the file's end says no kind of video or its folder cannot be made or written. Leaves
// nothing behind but the folder.
void check_video_output(const std::string& path, int64_t frames);
void check_output_folder(const std::string& path);

}  // namespace vmoba::apps
