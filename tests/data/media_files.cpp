#include "data/media_files.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "support/catch.h"
#include "support/process.h"

namespace vmoba::test {
namespace {

std::string run(const char* program, std::vector<std::string> head, const std::vector<std::string>& arguments) {
  head.insert(head.begin(), program);
  head.insert(head.end(), arguments.begin(), arguments.end());
  const ProcessResult result = run_process(head);
  INFO(program << ": " << result.output);
  REQUIRE(result.exit_code == 0);
  return result.output;
}

void append(std::vector<std::string>& to, const std::vector<std::string>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

}  // namespace

void ffmpeg(const std::vector<std::string>& arguments) {
  run("ffmpeg", {"-v", "error", "-nostdin", "-y"}, arguments);
}

std::string ffprobe(const std::vector<std::string>& arguments) {
  return run("ffprobe", {"-v", "error"}, arguments);
}

std::vector<double> frame_times(const std::string& path, int stream) {
  std::istringstream lines(ffprobe({"-select_streams", std::to_string(stream), "-show_entries",
                                    "frame=best_effort_timestamp_time", "-of", "csv=p=0", "file:" + path}));
  std::vector<double> times;
  for (std::string line; std::getline(lines, line);)
    if (!line.empty() && std::isdigit(static_cast<unsigned char>(line.front())))
      times.push_back(std::stod(line));  // else side data
  REQUIRE(!times.empty());
  const double first = times.front();
  for (double& time : times) time -= first;
  return times;
}

at::Tensor ffmpeg_frames(const std::string& path, const std::string& filters, int64_t height, int64_t width,
                         int stream) {
  const TemporaryFolder folder;
  const std::string raw = folder.path() + "/frames.rgb";
  const std::string chain = filters.empty() ? "null" : filters;
  ffmpeg({"-i", "file:" + path, "-map", fmt::format("0:{}", stream), "-vf", chain, "-vsync", "passthrough", "-f",
          "rawvideo", "-pix_fmt", "rgb24", raw});
  const std::string bytes = read_bytes(raw);
  const int64_t frame_bytes = 3 * height * width;
  REQUIRE(bytes.size() % static_cast<size_t>(frame_bytes) == 0);
  return at::from_blob(const_cast<char*>(bytes.data()),
                       {static_cast<int64_t>(bytes.size()) / frame_bytes, height, width, 3}, at::kByte)
      .permute({0, 3, 1, 2})
      .clone(at::MemoryFormat::Contiguous);
}

void make_moving_video(const std::string& path, int64_t frames, const std::string& size, const std::string& rate,
                       const std::vector<std::string>& encoder) {
  std::vector<std::string> arguments = {
      "-f", "lavfi", "-i", fmt::format("testsrc2=s={}:r={}", size, rate), "-frames:v", std::to_string(frames)};
  append(arguments, encoder);
  append(arguments, {path});
  ffmpeg(arguments);
}

void make_counting_video(const std::string& path, int64_t frames, const std::string& rate,
                         const std::vector<std::string>& encoder) {
  std::vector<std::string> arguments = {
      "-f",
      "lavfi",
      "-i",
      fmt::format("color=s=64x48:r={},format=yuv420p,geq=lum='16+4*if(lt(X,W/2),mod(N,50),floor(N/50))':cb=128:cr=128",
                  rate),
      "-frames:v",
      std::to_string(frames)};
  append(arguments, encoder);
  append(arguments, {path});
  ffmpeg(arguments);
}

std::vector<int64_t> counting_index(const at::Tensor& video_CFHW) {
  std::vector<int64_t> out;
  const at::Tensor grey_FHW = video_CFHW.to(at::kDouble).mean(0);
  const int64_t half = grey_FHW.size(2) / 2;
  const auto digit = [](const at::Tensor& area) { return std::llround(area.mean().item<double>() * 219 / 255 / 4); };
  for (int64_t f = 0; f < grey_FHW.size(0); ++f)
    // The columns beside the middle blend both halves.
    out.push_back(digit(grey_FHW[f].narrow(1, 0, half - 4)) + 50 * digit(grey_FHW[f].narrow(1, half + 4, half - 4)));
  return out;
}

std::vector<int64_t> nearest_frames(const std::vector<double>& times, double start_s, double fps, int64_t count) {
  std::vector<int64_t> out;
  for (int64_t k = 0; k < count; ++k) {
    const double wanted = start_s + static_cast<double>(k) / fps;
    size_t best = 0;
    for (size_t i = 1; i < times.size(); ++i)
      if (std::abs(times[i] - wanted) < std::abs(times[best] - wanted) - 2e-6) best = i;
    out.push_back(static_cast<int64_t>(best));
  }
  return out;
}

void make_flat_video(const std::string& path, int y, int u, int v, int bits, const std::string& size,
                     const std::string& matrix, const std::string& range) {
  const TemporaryFolder folder;
  const size_t cross = size.find('x');
  const size_t pixels = std::stoul(size.substr(0, cross)) * std::stoul(size.substr(cross + 1));
  std::string raw;
  const auto put = [&](int value, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      raw.push_back(static_cast<char>(value & 0xFF));
      if (bits > 8) raw.push_back(static_cast<char>(value >> 8));
    }
  };
  put(y, pixels);
  put(u, pixels / 4);
  put(v, pixels / 4);
  write_bytes(folder.path() + "/frame.yuv", raw);
  const std::string format = bits > 8 ? "yuv420p10le" : "yuv420p";
  ffmpeg({"-f", "rawvideo", "-pix_fmt", format, "-s", size, "-r", "16", "-i", folder.path() + "/frame.yuv", "-c:v",
          "ffv1", "-pix_fmt", format, "-colorspace", matrix, "-color_range", range, path});
}

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(file.good());
}

void set_display_matrix(const std::string& path, int a, int b, int c, int d) {
  std::string bytes = read_bytes(path);
  const size_t box = bytes.find("tkhd");
  REQUIRE(box != std::string::npos);
  REQUIRE(bytes[box + 4] == 0);  // version 0: 32-bit times
  const size_t matrix = box + 44;
  const auto put = [&](size_t entry, int value) {
    const uint32_t fixed = static_cast<uint32_t>(value * 65536);
    for (size_t i = 0; i < 4; ++i) bytes[matrix + 4 * entry + i] = static_cast<char>(fixed >> (24 - 8 * i));
  };
  put(0, a);
  put(1, b);
  put(3, c);
  put(4, d);
  write_bytes(path, bytes);
}

}  // namespace vmoba::test
