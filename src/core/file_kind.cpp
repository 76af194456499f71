#include "core/file_kind.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <string_view>

#include "core/check.h"
#include "core/file_descriptor.h"

namespace vmoba {
namespace {

constexpr size_t kFirstBytes = 4096;
constexpr uint64_t kLargestHeader = 100'000'000;  // of a safetensors file

const std::string kAgain = "; download it again, and log in where the site wants that";

struct Beginning {
  std::string_view bytes;
  std::string what;
};

std::string first_bytes(const std::string& path) {
  const FileDescriptor file(path, O_RDONLY | O_NONBLOCK);
  std::string bytes(kFirstBytes, '\0');
  const ssize_t got = file.get() < 0 ? 0 : ::read(file.get(), bytes.data(), bytes.size());
  bytes.resize(size_t(std::max<ssize_t>(got, 0)));
  return bytes;
}

std::string no_regular_file(const std::string& path, mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe (FIFO); write its content to a file first";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return out;
}

bool is_safetensors(std::string_view bytes) {
  if (bytes.size() < 9 || bytes[8] != '{') return false;
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | uint8_t(bytes[size_t(i)]);
  return length <= kLargestHeader;
}

// UTF-8 without control characters; a character that the end of the bytes cuts counts.
bool is_text(std::string_view bytes) {
  size_t following = 0;  // bytes that the character at hand still wants
  for (const unsigned char c : bytes) {
    if (following > 0) {
      if ((c & 0xC0) != 0x80) return false;
      --following;
    } else if (c >= 0x80) {
      if (c < 0xC2 || c > 0xF4) return false;
      following = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
    } else if (c == 0x7F || (c < 0x20 && c != '\n' && c != '\r' && c != '\t')) {
      return false;
    }
  }
  return true;
}

bool has_line(std::string_view text, std::string_view line) {
  for (size_t at = text.find(line); at != std::string_view::npos; at = text.find(line, at + 1))
    if (at == 0 || text[at - 1] == '\n') return true;
  return false;
}

// Configurations of other tools, each known by its sections.
std::string kind_of_toml(std::string_view text) {
  if (has_line(text, "[[datasets]]"))
    return "a data set of musubi-tuner (TOML); write it as YAML: video_directory or video_jsonl_file as data.path or, "
           "of "
           "several, under data.sets, target_frames as data.frames, resolution as data.width and data.height "
           "(docs/data.md)";
  if (has_line(text, "[[directory]]"))
    return "a data set of diffusion-pipe (TOML); write it as YAML: the path of a [[directory]] as data.path or, of "
           "several, under data.sets, num_repeats as repeats, frame_buckets as data.frames (docs/data.md)";
  if (has_line(text, "[adapter]") || (has_line(text, "[model]") && has_line(text, "[optimizer]")))
    return "a configuration of diffusion-pipe (TOML); write it as YAML: ckpt_path as model.weights, rank of [adapter] "
           "as "
           "lora.rank, lr of [optimizer] as train.optimizer.lr (docs/config.md)";
  for (const std::string_view section : {"[general]", "[model]", "[optimizer]", "[network]", "[training]"})
    if (has_line(text, section)) return "a TOML text; write it as YAML (docs/config.md)";
  return "";
}

// Of a text: a download that brought a message in place of the file, above all.
std::string kind_of_text(std::string_view bytes) {
  const size_t first = bytes.find_first_not_of("\xEF\xBB\xBF \t\r\n");
  const std::string_view text = first == std::string_view::npos ? std::string_view() : bytes.substr(first);
  if (text.starts_with("version https://git-lfs") || text.starts_with("# xet version"))
    return "a Git LFS pointer in place of the file; run `git lfs pull` where it was cloned, or download the file "
           "itself";
  const std::string beginning = lower(text.substr(0, 64));
  if (beginning.starts_with("<!doctype html") || beginning.starts_with("<html") || beginning.starts_with("<head"))
    return "an HTML page" + kAgain;
  if (beginning.starts_with("<?xml") || beginning.starts_with("<error"))
    return "an XML text, such as a server's refusal" + kAgain;
  const std::string_view line = text.substr(0, std::min<size_t>(text.find('\n'), 40));
  if (const std::string toml = kind_of_toml(text); !toml.empty()) return toml;
  if (text.starts_with('{') || text.starts_with('[')) return "a JSON text";
  return fmt::format("a text that begins with '{}'; name another file, or download it again", line);
}

std::string kind_of_zip(std::string_view bytes, const std::string& path) {
  // torch.save writes zips whose first entry is "<name>/data.pkl".
  if (bytes.substr(0, 256).find("/data.pkl") != std::string_view::npos)
    return "a pickle (a PyTorch file); " + pickle_cure(path);
  return "a zip archive; unpack it";
}

std::string kind_of_binary(std::string_view bytes, const std::string& path) {
  using namespace std::string_view_literals;
  const Beginning kBeginnings[] = {
      {"GGUF"sv, "a GGUF file; those of transformers are read as model.weights (docs/pretrained.md)"},
      {"GGML"sv, "a GGML file, which is not read here; get the same model as safetensors (docs/pretrained.md)"},
      {"\x1f\x8b"sv, "a gzip archive; unpack it"},
      {"\x28\xb5\x2f\xfd"sv, "a zstd archive; unpack it"},
      {"\xfd"
       "7zXZ"sv,
       "an xz archive; unpack it"},
      {"7z\xbc\xaf"sv, "a 7z archive; unpack it"},
      {"BZh"sv, "a bzip2 archive; unpack it"},
      {"Rar!"sv, "a rar archive; unpack it"},
      {"\x93NUMPY"sv, "a NumPy array"},
      {"\x89HDF"sv, "an HDF5 file"},
      {"\x89PNG"sv, "a PNG picture"},
      {"\xff\xd8\xff"sv, "a JPEG picture"},
      {"GIF8"sv, "a GIF picture"},
      {"RIFF"sv, "a RIFF file (WebP or AVI)"},
      {"\x1a\x45\xdf\xa3"sv, "a Matroska or WebM video"},
      {"\x7f"
       "ELF"sv,
       "a program"},
      {"%PDF"sv, "a PDF document"},
  };
  for (const Beginning& known : kBeginnings)
    if (bytes.starts_with(known.bytes)) return known.what;
  if (bytes.starts_with("PK\x03\x04"sv)) return kind_of_zip(bytes, path);
  if (bytes.size() > 2 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5 && !is_safetensors(bytes))
    return "a pickle; " + pickle_cure(path);
  if (bytes.size() > 12 && bytes.substr(4, 4) == "ftyp") return "an MP4 video or AVIF picture";
  if (bytes.size() > 262 && bytes.substr(257, 5) == "ustar") return "a tar archive; unpack it";
  if (bytes.find_first_not_of('\0') == std::string_view::npos)
    return "zeros; its download or copy did not finish, so get it again";
  return "";
}

}  // namespace

std::string pickle_cure(const std::string& path) {
  return fmt::format(
      "convert it once where torch is installed: python3 -c \"import torch, safetensors.torch as s; "
      "s.save_file({{k: v.contiguous() for k, v in torch.load('{}', map_location='cpu').items()}}, "
      "'out.safetensors')\"",
      path);
}

std::string what_is_this(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    std::error_code error;
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (error) return "nothing";
    return fmt::format("a link to '{}', which is not there; copy the file itself (cp -L)", target.string());
  }
  if (!S_ISREG(info.st_mode)) return no_regular_file(path, info.st_mode);
  if (info.st_size == 0) return "an empty file; its download or copy did not finish, so get it again";
  const std::string bytes = first_bytes(path);
  if (bytes.empty() || is_safetensors(bytes)) return "";
  return is_text(bytes) ? kind_of_text(bytes) : kind_of_binary(bytes, path);
}

}  // namespace vmoba
