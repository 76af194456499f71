#include "train/report/samples_grid.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/drawing.h"
#include "core/file.h"
#include "core/log.h"
#include "data/picture.h"
#include "report/run_files.h"

namespace vmoba::train {
namespace {

constexpr size_t kMostSteps = 8, kMostPrompts = 16;
constexpr int64_t kCellHeight = 150;  // pixels

GridPicture middle_frame(const std::string& path, const SampleConfig& sample, int64_t width) {
  GridPicture out;
  try {
    const double middle_s = double((sample.frames - 1) / 2) / sample.fps;
    const at::Tensor rgb = data::read_picture(path, middle_s, kCellHeight, width).permute({1, 2, 0}).contiguous();
    out = {width, kCellHeight, {rgb.data_ptr<uint8_t>(), rgb.data_ptr<uint8_t>() + rgb.numel()}};
  } catch (const Error& error) {
    log_debug("samples grid: {}", error.what());
  }
  return out;
}

}  // namespace

std::vector<int64_t> grid_steps(const std::vector<int64_t>& steps, size_t most) {
  if (steps.size() <= most) return steps;
  std::vector<int64_t> out;
  for (size_t i = 0; i < most; ++i) out.push_back(steps[i * (steps.size() - 1) / (most - 1)]);
  return out;
}

void write_samples_grid(const std::string& run_dir, const SampleConfig& sample) {
  std::map<int64_t, std::map<int64_t, report::SampleVideo>> by_prompt;  // then by step
  std::set<int64_t> steps;
  for (const report::SampleVideo& video : report::read_samples(run_dir)) {
    by_prompt[video.prompt_number][video.step] = video;
    steps.insert(video.step);
  }
  if (steps.empty()) return;
  const std::vector<int64_t> shown = grid_steps({steps.begin(), steps.end()}, kMostSteps);
  const int64_t width = std::max<int64_t>(8, sample.width * kCellHeight / sample.height);
  PictureGrid grid;
  grid.cell_width = width;
  grid.cell_height = kCellHeight;
  for (const int64_t step : shown) grid.columns.push_back(fmt::format("step {}", step));
  for (const auto& [prompt, videos] : by_prompt) {
    if (grid.rows.size() == kMostPrompts) break;
    std::vector<GridPicture> row;
    for (const int64_t step : shown) {
      const auto found = videos.find(step);
      row.push_back(found == videos.end() ? GridPicture{}
                                          : middle_frame(run_dir + "/" + found->second.file, sample, width));
    }
    grid.rows.push_back(videos.rbegin()->second.prompt);
    grid.pictures.push_back(std::move(row));
  }
  write_file_atomically(run_dir + "/samples/grid.png", grid_to_png(grid));
}

}  // namespace vmoba::train
