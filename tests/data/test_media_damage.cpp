// Damaged media: every mutation or truncation gives a clip of the right shape or a MediaError with a reason, never a
// crash, a hang or a wild allocation.
#include <ATen/ATen.h>
#include <sys/resource.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <map>

#include "core/random.h"
#include "data/clip_decoder.h"
#include "data/frame_sampler.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/process.h"

using namespace vmoba::data;
using namespace vmoba::test;

namespace {

constexpr std::array kReasons = {"missing:",    "empty:",       "corrupt:",   "truncated",
                                 "audio only:", "unsupported:", "unreadable:"};

struct Seed {
  std::string name, extension, bytes;
};

// Small files, so that their headers are a large part of them.
const std::vector<Seed>& seeds() {
  static const std::vector<Seed> all = [] {
    const TemporaryFolder folder;
    const std::string moving = "testsrc2=s=48x32:r=10";
    const std::vector<std::pair<std::string, std::vector<std::string>>> recipes = {
        {"a.mp4", {"-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv420p"}},
        {"b.mp4", {"-c:v", "libx264", "-movflags", "+faststart", "-pix_fmt", "yuv420p10le"}},
        {"c.mov", {"-c:v", "libx265", "-x265-params", "log-level=error:pools=1", "-tag:v", "hvc1"}},
        {"d.mkv", {"-c:v", "libx264", "-pix_fmt", "yuv420p"}},
        {"e.webm", {"-c:v", "libvpx-vp9", "-b:v", "0", "-crf", "40"}},
        {"f.mkv", {"-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "40"}},
        {"g.avi", {"-c:v", "mpeg4"}},
        {"h.ts", {"-c:v", "libx264", "-pix_fmt", "yuv420p"}},
        {"i.gif", {}},
        {"j.png", {"-frames:v", "1", "-update", "1"}},
        {"k.jpg", {"-frames:v", "1", "-update", "1"}},
        {"l.webp", {"-frames:v", "1", "-update", "1"}},
        {"m.tiff", {"-frames:v", "1", "-update", "1"}},
        {"n.bmp", {"-frames:v", "1", "-update", "1"}}};
    std::vector<Seed> out;
    for (const auto& [name, options] : recipes) {
      std::vector<std::string> words = {"-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", moving, "-frames:v", "8"};
      words.insert(words.end(), options.begin(), options.end());
      const std::string path = folder.path() + "/" + name;
      words.push_back(path);
      words.insert(words.begin(), "ffmpeg");
      if (run_process(words).exit_code != 0) continue;  // this ffmpeg lacks the encoder
      out.push_back({name, std::filesystem::path(name).extension().string(), read_bytes(path)});
    }
    return out;
  }();
  return all;
}

void put(std::string& bytes, size_t at, uint64_t value, size_t length) {
  for (size_t i = 0; i < length && at + i < bytes.size(); ++i)
    bytes[at + i] = static_cast<char>(value >> (8 * (length - 1 - i)));
}

// One change: half of them within the first or last kibibyte, where the headers are.
void mutate(std::string& bytes, vmoba::RandomStream& random) {
  if (bytes.empty()) return;
  size_t at = random.below(bytes.size());
  if (const uint64_t where = random.below(4); where < 2 && bytes.size() > 1024)
    at = where == 0 ? random.below(1024) : bytes.size() - 1 - random.below(1024);
  switch (random.below(7)) {
    case 0:
      bytes[at] = static_cast<char>(random.below(256));
      break;
    case 1:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
      break;
    case 2:
      put(bytes, at,
          std::array<uint64_t, 6>{0, ~uint64_t{0}, 0x7FFFFFFF, 0x80000000, 0x7FFFFFFFFFFFFFFF, 1}[random.below(6)],
          std::array<size_t, 3>{2, 4, 8}[random.below(3)]);
      break;
    case 3:
      bytes.erase(at, 1 + random.below(16));
      break;
    case 4:
      bytes.insert(at, bytes.substr(random.below(bytes.size()), random.below(64)));
      break;
    case 5:
      for (size_t i = at; i < std::min(bytes.size(), at + random.below(256)); ++i)
        bytes[i] = static_cast<char>(random.below(256));
      break;
    default:
      bytes.resize(at);
      break;
  }
}

// What planning and training do with a file; the reason where they refuse it, else "".
std::string use(const std::string& path) {
  try {
    const MediaInfo info = probe_media(path);
    const bool sound = info.displayed_width > 0 && info.displayed_height > 0 && std::isfinite(info.fps) &&
                       std::isfinite(info.duration_s) && info.duration_s >= 0 && (info.is_image || info.fps > 0);
    if (!sound) return "unsound";
    int64_t frames = 1;
    double start_s = 0;
    if (!info.is_image) {
      frames = std::min<int64_t>(5, fillable_frames(info.duration_s, info.rate(), 0, 16));
      if (frames < 1) return "";
      start_s = clip_starts("chunk", 4, frames, info.duration_s, info.rate(), 16).back();
    }
    VideoReader reader(path, 1);
    const at::Tensor clip = decode_clip(reader, {start_s, 16, frames, 32, 48, false});
    return clip.sizes() == at::IntArrayRef({3, frames, 32, 48}) ? "" : "wrong shape";
  } catch (const MediaError& error) {
    return error.what();
  }
}

bool is_reason(const std::string& text) {
  for (const char* head : kReasons)
    if (text.compare(0, std::string(head).size(), head) == 0) return text.size() > std::string(head).size() + 1;
  return false;
}

int64_t peak_memory_MiB() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

// `count` mutations of each seed, numbered from `first`; a section for each, so that `-c f.mkv` runs one format alone.
void fuzz_media(int64_t first, int64_t count) {
  REQUIRE(seeds().size() >= 10);
  const TemporaryFolder folder;
  for (const Seed& seed : seeds()) {
    DYNAMIC_SECTION(seed.name) {
      const std::string path = folder.path() + "/file" + seed.extension;
      write_bytes(path, seed.bytes);
      REQUIRE(use(path).empty());
      int64_t usable = 0;
      for (int64_t i = first; i < first + count; ++i) {
        vmoba::RandomStream random(23, "fuzz.media." + seed.extension, static_cast<uint64_t>(i));
        std::string bytes = seed.bytes;
        for (uint64_t changes = 1 + random.below(4); changes > 0; --changes) mutate(bytes, random);
        write_bytes(path, bytes);
        const std::string reason = use(path);
        if (!reason.empty() && !is_reason(reason)) FAIL("mutation " << i << ": " << reason);
        usable += reason.empty() ? 1 : 0;
      }
      CHECK(usable < count);
    }
  }
  // A frame of the largest size that is accepted needs 200 MiB in 8 bits; nothing near a header's claims.
  CHECK(peak_memory_MiB() < 6000);
}

}  // namespace

TEST_CASE("Every truncation of a small file is refused or gives a clip") {
  const TemporaryFolder folder;
  for (const Seed& seed : seeds()) {
    INFO(seed.extension);
    const std::string path = folder.path() + "/file" + seed.extension;
    int64_t refused = 0;
    for (size_t i = 0; i < 40; ++i) {
      write_bytes(path, seed.bytes.substr(0, seed.bytes.size() * i / 40));
      const std::string reason = use(path);
      if (!reason.empty() && !is_reason(reason)) FAIL("cut to " << i << "/40: " << reason);
      refused += reason.empty() ? 0 : 1;
    }
    CHECK(refused >= 1);
  }
}

TEST_CASE("Mutated media files are refused or give a clip") {
  fuzz_media(0, 1000);
}
TEST_CASE("100,000 mutations of every media format", "[fuzz]") {
  fuzz_media(1000, 100'000);
}
