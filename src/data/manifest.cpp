#include "data/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <set>

#include "core/check.h"
#include "core/file.h"
#include "core/file_kind.h"
#include "core/log.h"
#include "core/storage.h"
#include "data/manifest_text.h"

namespace vmoba::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxManifest_bytes = int64_t{1} << 30;
constexpr std::array kMediaExtensions = {
    ".mp4",  ".mov", ".m4v",  ".mkv",  ".webm", ".avi",   ".ts",   ".m2ts", ".mts",  ".m2t",  ".mpg",  ".mpeg",
    ".vob",  ".m1v", ".m2v",  ".flv",  ".f4v",  ".wmv",   ".asf",  ".ogv",  ".ogg",  ".3gp",  ".3g2",  ".mxf",
    ".y4m",  ".ivf", ".obu",  ".h264", ".264",  ".avc",   ".h265", ".265",  ".hevc", ".dv",   ".nut",  ".qt",
    ".divx", ".rm",  ".rmvb", ".mjpg", ".mpv",  ".mjpeg", ".gif",  ".png",  ".apng", ".jpg",  ".jpeg", ".jpe",
    ".jfif", ".mpo", ".webp", ".bmp",  ".dib",  ".tif",   ".tiff", ".avif", ".heic", ".heif", ".hif",  ".jxl",
    ".jp2",  ".j2k", ".ppm",  ".pgm",  ".pbm",  ".pnm",   ".pam",  ".qoi",  ".psd"};
// Belong to data sets without being media.
constexpr std::array kSideExtensions = {".txt", ".json", ".jsonl",       ".csv", ".tsv", ".toml",   ".yaml",
                                        ".yml", ".md",   ".safetensors", ".npz", ".pt",  ".caption"};
// Captions beside a media file, in the order in which they are looked for.
constexpr std::array kSidecars = {".txt", ".caption", ".json"};
// Manifests that a folder may hold, in the order in which they are looked for.
constexpr std::array kFolderManifests = {"metadata.jsonl",      "metadata.json", "metadata.csv", "metadata.tsv",
                                         "videos2caption.json", "captions.json", "meta.json",    "videos.txt"};
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
  if (extension == ".jsonl" || extension == ".csv" || extension == ".tsv" || extension == ".json")
    return extension.substr(1);
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

using Sidecars = std::map<std::string, std::map<fs::path, fs::path>>;  // extension -> place without it -> file

// Captions of a folder's files, and what is odd about them.
class SidecarReader {
 public:
  SidecarReader(const Sidecars& sidecars, const DataConfig& config) : sidecars_(sidecars), config_(config) {}

  // name.txt, name.caption or name.json of name.mp4, or the same behind name.mp4; "" where there is none.
  std::string caption_of(const fs::path& media) {
    const fs::path stem = media.parent_path() / media.stem();
    for (const char* extension : kSidecars) {
      const auto files = sidecars_.find(extension);
      if (files == sidecars_.end()) continue;
      for (const fs::path& place : {stem, media})
        if (const auto found = files->second.find(place); found != files->second.end())
          return read(found->second, media);
    }
    return "";
  }
  std::vector<std::string> notes() const {
    std::vector<std::string> out;
    int64_t shared = 0;
    std::string first;
    for (const auto& [caption, media] : users_) {
      if (media.size() < 2) continue;
      if (shared++ == 0)
        first = fmt::format("{} for {} and {}", caption.string(), media[0].filename().string(),
                            media[1].filename().string());
    }
    if (shared > 0)
      out.push_back(fmt::format("{} captions serve several files of one name, the first {}; move preview pictures away",
                                shared, first));
    if (empty_ > 0)
      out.push_back(
          fmt::format("{} .json files beside media hold no caption, the first {}; name its key with "
                      "data.caption_column",
                      empty_, first_empty_));
    return out;
  }

 private:
  std::string read(const fs::path& path, const fs::path& media) {
    users_[path].push_back(media);
    const std::string text = read_file(path.string(), kMaxManifestLine_bytes, "caption file");
    std::string caption;
    if (lower_extension(path) != ".json") {
      caption = std::string(trim(text));
    } else if (!parse_caption_json(text, path.string(), config_.caption_column, caption) && empty_++ == 0) {
      first_empty_ = path.string();
    }
    const std::string problem = caption_problem(caption);
    VMOBA_CHECK_INPUT(problem.empty(), "{}: {}", path.string(), problem);
    return caption;
  }

  const Sidecars& sidecars_;
  const DataConfig& config_;
  std::map<fs::path, std::vector<fs::path>> users_;
  int64_t empty_ = 0;
  std::string first_empty_;
};

// A folder with all that it holds, or one media file with its captions.
std::vector<fs::path> files_of(const fs::path& path, std::vector<DroppedClip>& dropped) {
  std::vector<fs::path> files;
  if (fs::is_directory(path)) {
    std::set<fs::path> seen;
    list_files(path, seen, files, dropped);
    return files;
  }
  files.push_back(path);
  for (const char* extension : kSidecars)
    for (const fs::path& side : {fs::path(path).replace_extension(extension), fs::path(path.string() + extension)})
      if (fs::exists(side)) files.push_back(side);
  return files;
}

Manifest read_folder(const DataConfig& config) {
  Manifest out;
  const std::vector<fs::path> files = files_of(config.path, out.dropped);
  const bool named = !fs::is_directory(config.path);  // then the first file is media, whatever its name
  Sidecars sidecars;
  std::set<fs::path> media;
  for (const fs::path& file : files) {
    const std::string extension = lower_extension(file);
    const fs::path stem = file.parent_path() / file.stem();
    if (contains(kSidecars, extension)) sidecars[extension].emplace(stem, file);
    if (contains(kMediaExtensions, extension)) media.insert({stem, file});
  }
  SidecarReader captions(sidecars, config);
  for (const fs::path& file : files) {
    const std::string extension = lower_extension(file);
    if (contains(kMediaExtensions, extension) || (named && file == files.front())) {
      try {
        out.entries.push_back({file.string(), captions.caption_of(file), "", {}, ""});
      } catch (const StorageError& error) {
        if (error.transient() && !error.missing()) throw;
        out.dropped.push_back({file.string(), error.what(), /*failed=*/true});
      } catch (const Error& error) {
        out.dropped.push_back({file.string(), error.what()});
      }
    } else if ((extension == ".txt" || extension == ".caption") && !media.count(file.parent_path() / file.stem())) {
      if (!named) out.dropped.push_back({file.string(), "a caption without a video or image of the same name"});
    } else if (!contains(kSideExtensions, extension)) {
      out.dropped.push_back(
          {file.string(), "unknown file name extension; name the file in a manifest to use it all the same"});
    }
  }
  out.notes = captions.notes();
  return out;
}

// Absolute, beside the manifest, or in the folder videos/ there.
std::string resolve(const fs::path& folder, const std::string& media) {
  const fs::path path(media);
  if (path.is_absolute()) return path.string();
  std::error_code error;
  const fs::path beside = folder / path, inside = folder / "videos" / path;
  if (fs::exists(beside, error)) return beside.string();
  if (fs::exists(inside, error)) return inside.string();
  if (std::string slashes = media; slashes.find('\\') != std::string::npos) {
    std::replace(slashes.begin(), slashes.end(), '\\', '/');  // written on Windows
    if (std::string found = resolve(folder, slashes); fs::exists(found, error)) return found;
  }
  return beside.string();
}

ManifestText read_text(const fs::path& path, const std::string& format, const DataConfig& config) {
  const std::string text = read_file(path.string(), kMaxManifest_bytes, "manifest");
  const ManifestColumns columns{config.video_column, config.caption_column};
  if (format == "jsonl") return parse_jsonl(text, columns);
  if (format == "json") return parse_json(text, path.string(), columns);
  if (format == "csv") return parse_csv(text, path.string(), columns);
  if (format == "tsv") return parse_csv(text, path.string(), columns, '\t');
  for (const char* name : kCaptionLists) {
    const fs::path captions = path.parent_path() / name;
    if (captions == path || !fs::exists(captions)) continue;
    return parse_lines(text, read_file(captions.string(), kMaxManifest_bytes, "caption list"), path.string(),
                       captions.string());
  }
  throw_input("expected a caption list (prompt.txt, prompts.txt, caption.txt or captions.txt) beside {}, found none",
              path.string());
}

bool has_media_beside(const fs::path& path) {
  std::error_code error;
  for (fs::directory_iterator i(path.parent_path(), error); !error && i != fs::directory_iterator(); i.increment(error))
    if (i->path().stem() == path.stem() && contains(kMediaExtensions, lower_extension(i->path()))) return true;
  return false;
}

// An object of captions names files that exist; another object is the caption of a file, or of other use.
bool is_foreign_object(const fs::path& path, const DataConfig& config) {
  if (lower_extension(path) != ".json") return false;
  try {
    const std::string text = read_file(path.string(), kMaxManifest_bytes, "manifest");
    if (!trim(text).starts_with('{')) return false;
    const ManifestText read = parse_json(text, path.string(), {config.video_column, config.caption_column});
    std::error_code error;
    for (const ManifestRecord& record : read.records)
      if (record.by_list || contains(kMediaExtensions, lower_extension(record.media)) ||
          fs::exists(resolve(path.parent_path(), record.media), error))
        return false;
    return std::none_of(read.problems.begin(), read.problems.end(),
                        [](const ManifestProblem& problem) { return problem.by_list; });
  } catch (const Error&) {
    return false;  // a broken manifest is to be named, not to be passed over
  }
}

// The manifest inside a folder that fits `format` ("auto": any), or the folder itself.
fs::path find_in_folder(const DataConfig& config) {
  const fs::path folder(config.path);
  const bool is_auto = config.format == "auto";
  for (const char* name : kFolderManifests) {
    const fs::path path = folder / name;
    if (!fs::exists(path) || (!is_auto && format_of(path) != config.format)) continue;
    if (fs::path(name) == "videos.txt" && is_auto &&
        std::none_of(kCaptionLists.begin(), kCaptionLists.end(),
                     [&](const char* list) { return fs::exists(folder / list); }))
      continue;
    if (is_auto && (has_media_beside(path) || is_foreign_object(path, config))) {
      log_warning("data: {} names no media and is not taken for the manifest of its folder", path.string());
      continue;
    }
    return path;
  }
  return folder;
}

// Media of `folder` that no line names would be missed in silence.
void note_unnamed(const fs::path& folder, const std::string& manifest, Manifest& out) {
  std::set<fs::path> named, seen;
  const auto place = [](const std::string& path) { return fs::absolute(path).lexically_normal(); };
  for (const ManifestEntry& entry : out.entries) {
    named.insert(place(entry.path));
    if (!entry.mask.empty()) named.insert(place(entry.mask));
  }
  for (const DroppedClip& dropped : out.dropped) named.insert(place(dropped.path));
  std::vector<fs::path> files;
  list_files(folder, seen, files, out.dropped);
  int64_t count = 0;
  for (const fs::path& file : files) {
    if (!contains(kMediaExtensions, lower_extension(file)) || named.count(place(file.string()))) continue;
    out.dropped.push_back({file.string(), fmt::format("not named by {}", manifest)});
    ++count;
  }
  if (count > 0)
    out.notes.push_back(
        fmt::format("{} media files of {} are not named by its manifest {} and give no clip; data.format=folder takes "
                    "the files with the captions beside them",
                    count, folder.string(), manifest));
}

// Of several manifests in a folder one is read.
void note_other_manifests(const fs::path& manifest, Manifest& out) {
  std::string others;
  for (const char* name : kFolderManifests) {
    const fs::path path = manifest.parent_path() / name;
    if (path == manifest || !fs::exists(path) || fs::path(name) == "videos.txt" || has_media_beside(path)) continue;
    others += (others.empty() ? "" : ", ") + std::string(name);
  }
  if (!others.empty())
    out.notes.push_back(fmt::format("of the manifests in {}, {} is read and not {}; name another one with data.path",
                                    manifest.parent_path().string(), manifest.filename().string(), others));
}

std::string list_of_words(const std::set<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

}  // namespace

Manifest read_manifest(const DataConfig& config) {
  VMOBA_CHECK_INPUT(!config.path.empty(), "expected a folder or a manifest file under data.path, found nothing");
  std::error_code error;
  VMOBA_CHECK_INPUT(fs::exists(config.path, error), "expected data.path to exist, found no '{}'", config.path);
  fs::path path(config.path);
  std::string format = config.format;
  if (fs::is_directory(path) && format != "folder") {
    path = find_in_folder(config);
    VMOBA_CHECK_INPUT(format == "auto" || !fs::is_directory(path),
                      "expected a {} manifest in data.path '{}', found none of the usual names; name the file itself",
                      format, config.path);
    if (!fs::is_directory(path)) log_info("data: reading the manifest {}", path.string());
  }
  if (format == "auto") format = fs::is_directory(path) ? "folder" : format_of(path);
  VMOBA_CHECK_INPUT(
      format != "folder" || fs::is_directory(path) || !contains(kSideExtensions, lower_extension(path)),
      "expected a folder, a media file or a manifest (.jsonl, .json, .csv, .tsv, .txt) at data.path '{}', "
      "found {}",
      path.string(), what_is_this(path.string()));
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
                           fmt::format("{}:{}", origin, record.line), record.cut,
                           record.mask.empty() ? "" : resolve(path.parent_path(), record.mask)});
  if (!text.unused_keys.empty())
    out.notes.push_back(fmt::format("{}: keys that are not used: {}", origin, list_of_words(text.unused_keys)));
  if (fs::is_directory(config.path)) {
    note_other_manifests(path, out);
    note_unnamed(config.path, origin, out);
  }
  return out;
}

}  // namespace vmoba::data
