#include "apps/sample/outputs.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

#include "core/check.h"
#include "data/video_writer.h"

namespace vmoba::apps {
namespace {

namespace fs = std::filesystem;

bool is_folder(const std::string& out) {
  return out.ends_with('/') || fs::is_directory(out) || fs::path(out).extension().empty();
}

std::string numbered(const std::string& out, size_t number) {
  const fs::path path = out;
  if (is_folder(out)) return (path / fmt::format("{:03d}.mp4", number)).string();
  const std::string stem = path.stem().string(), extension = path.extension().string();
  // Before a picture's number, so that the pictures of one video sort together.
  const std::string name = stem.find('%') != std::string::npos ? fmt::format("{:03d}-{}{}", number, stem, extension)
                                                               : fmt::format("{}-{:03d}{}", stem, number, extension);
  return (path.parent_path() / name).string();
}

}  // namespace

std::vector<std::string> output_names(const std::string& out, const std::vector<VideoOrder>& orders, bool of_file) {
  std::vector<std::string> names;
  std::set<std::string> seen;
  for (size_t i = 0; i < orders.size(); ++i) {
    const std::string& own = orders[i].out;
    const bool alone = orders.size() == 1 && !(of_file && is_folder(out));
    names.push_back(!own.empty() ? own : alone ? out : numbered(out, i));
    VMOBA_CHECK_INPUT(seen.insert(names.back()).second, "expected another name for each video, found '{}' twice",
                      names.back());
  }
  return names;
}

void check_output_folder(const std::string& path) {
  fs::path folder = fs::path(path).parent_path();
  if (folder.empty()) folder = ".";
  std::error_code error;
  fs::create_directories(folder, error);
  VMOBA_CHECK_INPUT(!error && fs::is_directory(folder),
                    "expected to write '{}', found a folder that cannot be made: {}; name another one", path,
                    error ? error.message() : "a file is in its place");
  // Rights say less than an attempt: file systems may be read-only, full or of no files.
  std::string attempt = (folder / ".vmoba-XXXXXX").string();
  const int file = ::mkstemp(attempt.data());
  VMOBA_CHECK_INPUT(file >= 0, "expected to write '{}', found a folder that cannot be written: {}; name another one",
                    path, std::strerror(errno));
  ::close(file);
  ::unlink(attempt.c_str());
  VMOBA_CHECK_INPUT(!fs::is_directory(path), "expected the name of a file to write, found the folder '{}'", path);
}

void check_video_output(const std::string& path, int64_t frames) {
  VMOBA_CHECK_INPUT(!path.ends_with('/') && !fs::is_directory(path),
                    "expected the name of a video to write, found the folder '{}'; name a file, such as {}", path,
                    (fs::path(path) / "sample.mp4").string());
  data::check_video_path(path, frames);
  check_output_folder(path);
}

}  // namespace vmoba::apps
