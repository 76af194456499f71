#include "data/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <set>

#include "core/check.h"
#include "core/file.h"
#include "core/log.h"
#include "core/storage.h"
#include "data/manifest_text.h"

namespace vmoba::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxManifest_bytes = int64_t{1} << 30;
constexpr std::array kMediaExtensions = {".mp4", ".mov",  ".m4v", ".mkv", ".webm", ".avi",  ".ts",  ".m2ts", ".mts",
                                         ".mpg", ".mpeg", ".flv", ".wmv", ".asf",  ".ogv",  ".3gp", ".mxf",  ".y4m",
                                         ".ivf", ".gif",  ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif",  ".tiff"};
// Belong to data sets without being media.
constexpr std::array kSideExtensions = {".txt", ".json", ".jsonl",       ".csv", ".toml", ".yaml",
                                        ".yml", ".md",   ".safetensors", ".npz", ".pt",   ".caption"};
// Manifests that a folder may hold, in the order in which they are looked for.
constexpr std::array kFolderManifests = {"metadata.jsonl", "metadata.json", "metadata.csv", "videos2caption.json",
                                         "captions.json",  "meta.json",     "videos.txt"};
constexpr std::array kCaptionLists = {"prompt.txt", "prompts.txt", "caption.txt", "captions.txt"};

std::string lower_extension(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
  return extension;
}

template <size_t N>
bool contains(const std::array<const char*, N>& list, const std::string& word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

std::string format_of(const fs::path& path) {
  const std::string extension = lower_extension(path);
  if (extension == ".jsonl" || extension == ".csv" || extension == ".json") return extension.substr(1);
  return extension == ".txt" ? "lines" : "folder";
}

// A folder that cannot be listed is worth a wait (plan_clips tries again), or is dropped.
void fail_folder(const fs::path& folder, const std::error_code& error, std::vector<DroppedClip>& dropped) {
  if (is_transient(error.value()))
    throw StorageError(ErrorKind::kInput,
                       fmt::format("expected to list the folder '{}', found: {}", folder.string(), error.message()),
                       error.value());
  dropped.push_back({folder.string(), "unreadable: " + error.message(), /*failed=*/true});
}

// All files under `folder`, folders reached through links included, each real folder once.
void list_files(const fs::path& folder, std::set<fs::path>& seen, std::vector<fs::path>& files,
                std::vector<DroppedClip>& dropped) {
  std::error_code error;
  if (!seen.insert(fs::canonical(folder, error)).second || error) return;
  fs::directory_iterator iterator(folder, error);
  if (error) return fail_folder(folder, error, dropped);
  std::vector<fs::path> inside;
  for (; iterator != fs::directory_iterator(); iterator.increment(error)) {
    if (error) return fail_folder(folder, error, dropped);
    if (iterator->path().filename().string().front() != '.') inside.push_back(iterator->path());
  }
  std::sort(inside.begin(), inside.end());
  for (const fs::path& path : inside) {
    if (fs::is_directory(path, error))
      list_files(path, seen, files, dropped);
    else
      files.push_back(path);
  }
}

std::string read_sidecar(const fs::path& path, const DataConfig& config) {
  const std::string text = read_file(path.string(), kMaxManifestLine_bytes, "caption file");
  std::string caption;
  if (lower_extension(path) == ".json")
    parse_caption_json(text, path.string(), config.caption_column, caption);
  else
    caption = std::string(trim(text));
  const std::string problem = caption_problem(caption);
  VMOBA_CHECK_INPUT(problem.empty(), "{}: {}", path.string(), problem);
  return caption;
}

// Same-stem .txt, then .json; "" where there is neither.
std::string find_caption(const fs::path& media, const std::map<fs::path, fs::path>& texts,
                         const std::map<fs::path, fs::path>& jsons, const DataConfig& config) {
  const fs::path stem = media.parent_path() / media.stem();
  for (const auto* sidecars : {&texts, &jsons})
    if (const auto found = sidecars->find(stem); found != sidecars->end()) return read_sidecar(found->second, config);
  return "";
}

Manifest read_folder(const DataConfig& config) {
  Manifest out;
  std::vector<fs::path> files;
  if (fs::is_directory(config.path)) {
    std::set<fs::path> seen;
    list_files(config.path, seen, files, out.dropped);
  } else {
    const fs::path media(config.path);
    files.push_back(media);
    for (const char* extension : {".txt", ".json"})
      if (fs::path side = fs::path(media).replace_extension(extension); fs::exists(side)) files.push_back(side);
  }
  std::map<fs::path, fs::path> texts, jsons;
  std::set<fs::path> stems;
  for (const fs::path& file : files) {
    const std::string extension = lower_extension(file);
    const fs::path stem = file.parent_path() / file.stem();
    if (extension == ".txt") texts.emplace(stem, file);
    if (extension == ".json") jsons.emplace(stem, file);
    if (contains(kMediaExtensions, extension)) stems.insert(stem);
  }
  for (const fs::path& file : files) {
    const std::string extension = lower_extension(file);
    if (contains(kMediaExtensions, extension)) {
      try {
        out.entries.push_back({file.string(), find_caption(file, texts, jsons, config), ""});
      } catch (const StorageError& error) {
        if (error.transient() && !error.missing()) throw;
        out.dropped.push_back({file.string(), error.what(), /*failed=*/true});
      } catch (const Error& error) {
        out.dropped.push_back({file.string(), error.what()});
      }
    } else if (extension == ".txt" && !stems.count(file.parent_path() / file.stem())) {
      out.dropped.push_back({file.string(), "a caption without a video or image of the same name"});
    } else if (!contains(kSideExtensions, extension)) {
      out.dropped.push_back(
          {file.string(), "unknown file name extension; name the file in a manifest to use it all the same"});
    }
  }
  return out;
}

// Absolute, beside the manifest, or in the folder videos/ there.
std::string resolve(const fs::path& folder, const std::string& media) {
  const fs::path path(media);
  if (path.is_absolute()) return path.string();
  std::error_code error;
  const fs::path beside = folder / path, inside = folder / "videos" / path;
  return !fs::exists(beside, error) && fs::exists(inside, error) ? inside.string() : beside.string();
}

ManifestText read_text(const fs::path& path, const std::string& format, const DataConfig& config) {
  const std::string text = read_file(path.string(), kMaxManifest_bytes, "manifest");
  const ManifestColumns columns{config.video_column, config.caption_column};
  if (format == "jsonl") return parse_jsonl(text, columns);
  if (format == "json") return parse_json(text, path.string(), columns);
  if (format == "csv") return parse_csv(text, path.string(), columns);
  for (const char* name : kCaptionLists) {
    const fs::path captions = path.parent_path() / name;
    if (captions == path || !fs::exists(captions)) continue;
    return parse_lines(text, read_file(captions.string(), kMaxManifest_bytes, "caption list"), path.string(),
                       captions.string());
  }
  throw_input("expected a caption list (prompt.txt, prompts.txt, caption.txt or captions.txt) beside {}, found none",
              path.string());
}

// The manifest inside a folder that fits `format` ("auto": any), or the folder itself.
fs::path find_in_folder(const fs::path& folder, const std::string& format) {
  for (const char* name : kFolderManifests) {
    const fs::path path = folder / name;
    if (!fs::exists(path) || (format != "auto" && format_of(path) != format)) continue;
    if (fs::path(name) == "videos.txt" && format == "auto" &&
        std::none_of(kCaptionLists.begin(), kCaptionLists.end(),
                     [&](const char* list) { return fs::exists(folder / list); }))
      continue;
    return path;
  }
  return folder;
}

}  // namespace

Manifest read_manifest(const DataConfig& config) {
  VMOBA_CHECK_INPUT(!config.path.empty(), "expected a folder or a manifest file under data.path, found nothing");
  std::error_code error;
  VMOBA_CHECK_INPUT(fs::exists(config.path, error), "expected data.path to exist, found no '{}'", config.path);
  fs::path path(config.path);
  std::string format = config.format;
  if (fs::is_directory(path) && format != "folder") {
    path = find_in_folder(path, format);
    VMOBA_CHECK_INPUT(format == "auto" || !fs::is_directory(path),
                      "expected a {} manifest in data.path '{}', found none of the usual names; name the file itself",
                      format, config.path);
    if (!fs::is_directory(path)) log_info("data: reading the manifest {}", path.string());
  }
  if (format == "auto") format = fs::is_directory(path) ? "folder" : format_of(path);
  if (format == "folder") return read_folder(config);

  ManifestText text = read_text(path, format, config);
  Manifest out;
  const std::string origin = path.filename().string();
  for (const ManifestProblem& problem : text.problems)
    out.dropped.push_back({problem.media.empty() ? fmt::format("{}:{}", path.string(), problem.line)
                                                 : resolve(path.parent_path(), problem.media),
                           fmt::format("{}:{}: {}", origin, problem.line, problem.message)});
  for (ManifestRecord& record : text.records)
    out.entries.push_back({resolve(path.parent_path(), record.media), std::move(record.caption),
                           fmt::format("{}:{}", origin, record.line)});
  return out;
}

}  // namespace vmoba::data
