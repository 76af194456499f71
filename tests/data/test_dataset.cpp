// The sample stream: order, independence of threads, resume, replacement of clips that cannot be decoded.
#include "data/dataset.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include "core/check.h"
#include "data/media_files.h"
#include "support/catch.h"
#include "support/process.h"
#include "support/stderr_capture.h"

using namespace vmoba::data;
using namespace vmoba::test;

namespace {

constexpr ClipGeometry kGeometry{4, 16};

// A plan of clips that exist in name only: `sizes[b]` clips in bucket b.
ClipPlan paper_plan(const std::vector<int64_t>& sizes, int64_t repeats = 1) {
  ClipPlan plan;
  for (size_t b = 0; b < sizes.size(); ++b) {
    plan.buckets.push_back({5, 48, 64, 24, sizes[b]});
    for (int64_t i = 0; i < sizes[b]; ++i) {
      Clip clip;
      clip.path = "clip" + std::to_string(plan.clips.size());
      clip.bucket = static_cast<int64_t>(b);
      clip.frames = 5;
      clip.repeats = repeats;
      plan.clips.push_back(clip);
    }
  }
  return plan;
}

std::vector<int64_t> epoch_of(const SampleOrder& order, int64_t epoch) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < order.samples_per_epoch(); ++i)
    out.push_back(order.clip_of(epoch * order.samples_per_epoch() + i));
  return out;
}

// A folder of counting videos of different lengths, 25 frames per second.
class VideoFolder {
 public:
  explicit VideoFolder(int64_t videos) {
    for (int64_t i = 0; i < videos; ++i)
      make_counting_video(path(i), 30 + 4 * i, "25", {"-c:v", "libx264", "-g", "12", "-bf", "2"});
    config_.path = folder_.path();
    config_.frames = {5};
    config_.fps = 10;
    config_.height = 48;
    config_.width = 64;
    config_.patience_s = 0;
  }
  std::string path(int64_t i) const { return folder_.path() + "/v" + std::to_string(100 + i) + ".mp4"; }
  DataConfig& config() { return config_; }
  ClipPlan plan() const { return plan_clips(config_, kGeometry); }

 private:
  TemporaryFolder folder_;
  DataConfig config_;
};

std::vector<Sample> draw(SampleStream& stream, int64_t count) {
  std::vector<Sample> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(stream.next());
  return out;
}

int64_t stream_epoch(const ClipPlan& plan) {
  return SampleOrder(plan, 7, 1).samples_per_epoch();
}

bool same(const Sample& a, const Sample& b) {
  return a.index == b.index && a.clip == b.clip && a.caption == b.caption && at::equal(a.video_CFHW, b.video_CFHW);
}

bool same(const std::vector<Sample>& a, const std::vector<Sample>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Sample& x, const Sample& y) { return same(x, y); });
}

// Leaves the header, so that the file still opens in part, and overwrites the pictures.
void damage(const std::string& path) {
  std::string bytes = read_bytes(path);
  const size_t data = bytes.find("mdat") + 4;
  std::fill(bytes.begin() + static_cast<int64_t>(data), bytes.begin() + static_cast<int64_t>(bytes.find("moov") - 4),
            '\x5A');
  write_bytes(path, bytes);
}

size_t count_of(const std::string& text, const std::string& word) {
  size_t count = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("An epoch shows every clip as often as it repeats, in an order of seed and epoch") {
  for (const int64_t repeats : {1, 3}) {
    const SampleOrder order(paper_plan({7, 4, 1}, repeats), 3, 1);
    REQUIRE(order.samples_per_epoch() == 12 * repeats);
    for (const int64_t epoch : {0, 1, 5, 1000}) {
      std::map<int64_t, int64_t> shown;
      for (const int64_t clip : epoch_of(order, epoch)) ++shown[clip];
      REQUIRE(shown.size() == 12);
      for (const auto& [clip, times] : shown) CHECK(times == repeats);
    }
    CHECK(epoch_of(order, 0) != epoch_of(order, 1));
    CHECK(epoch_of(order, 0) != epoch_of(SampleOrder(paper_plan({7, 4, 1}, repeats), 4, 1), 0));
  }
}

TEST_CASE("Groups share a bucket, and no clip is left out for their sake") {
  const ClipPlan plan = paper_plan({7, 4, 1});
  const SampleOrder order(plan, 3, 3);
  REQUIRE(order.samples_per_epoch() == 9 + 6 + 3);
  for (const int64_t epoch : {0, 1, 2}) {
    const std::vector<int64_t> clips = epoch_of(order, epoch);
    for (size_t i = 0; i < clips.size(); ++i)
      CHECK(plan.clips[static_cast<size_t>(clips[i])].bucket ==
            plan.clips[static_cast<size_t>(clips[i / 3 * 3])].bucket);
    CHECK(std::set<int64_t>(clips.begin(), clips.end()).size() == 12);
  }
}

TEST_CASE("Positions of the order are functions of their number") {
  const ClipPlan plan = paper_plan({9, 5});
  const SampleOrder forward(plan, 8, 2), backward(plan, 8, 2);
  std::vector<int64_t> up, down;
  for (int64_t i = 0; i < 100; ++i) up.push_back(forward.clip_of(i));
  for (int64_t i = 99; i >= 0; --i) down.push_back(backward.clip_of(i));
  std::reverse(down.begin(), down.end());
  CHECK(up == down);
}

TEST_CASE("The stream is the same for any number of threads and clips ahead") {
  VideoFolder videos(6);
  videos.config().frame_extraction = "random";
  videos.config().horizontal_flip = 0.5;
  const ClipPlan plan = videos.plan();
  REQUIRE(plan.clips.size() == 6);
  videos.config().decode_threads = 1;
  videos.config().prefetch_clips = 1;
  SampleStream reference(plan, videos.config(), 17, 2, 0, 1);
  const std::vector<Sample> expected = draw(reference, 20);
  for (int64_t i = 0; i < 20; ++i) REQUIRE(expected[static_cast<size_t>(i)].index == i);
  for (const auto& [threads, ahead] : std::vector<std::pair<int64_t, int64_t>>{{2, 4}, {5, 3}, {8, 16}, {7, 2}}) {
    INFO(threads << " threads, " << ahead << " clips ahead");
    videos.config().decode_threads = threads;
    videos.config().prefetch_clips = ahead;
    SampleStream stream(plan, videos.config(), 17, 2, 0, 1);
    CHECK(same(draw(stream, 20), expected));
  }

  SECTION("opened in the middle, or by ranks in strides, it goes on with the same samples") {
    for (const int64_t first : {1, 7, 13}) {
      SampleStream stream(plan, videos.config(), 17, 2, first, 1);
      CHECK(same(draw(stream, 20 - first), {expected.begin() + first, expected.end()}));
    }
    for (const int64_t rank : {0, 1, 2}) {
      SampleStream stream(plan, videos.config(), 17, 2, rank, 3);
      for (int64_t i = rank; i < 18; i += 3) CHECK(same(stream.next(), expected[static_cast<size_t>(i)]));
    }
  }
  SECTION("another seed gives another stream") {
    SampleStream stream(plan, videos.config(), 18, 2, 0, 1);
    CHECK_FALSE(same(draw(stream, 20), expected));
  }
}

TEST_CASE("Random starts stay inside the video and mirrored samples are mirrored") {
  VideoFolder videos(1);  // 30 frames of 1/25 s: five frames at 10 per second need 0.42 s of 1.2 s
  videos.config().frame_extraction = "random";
  const ClipPlan plan = videos.plan();
  SampleStream stream(plan, videos.config(), 3, 1, 0, 1);
  std::set<int64_t> firsts;
  for (const Sample& sample : draw(stream, 40)) {
    const std::vector<int64_t> shown = counting_index(sample.video_CFHW);
    firsts.insert(shown.front());
    for (size_t k = 1; k < shown.size(); ++k) {
      const int64_t step = shown[k] - shown[k - 1];
      CHECK((step == 2 || step == 3));
    }
  }
  CHECK(*firsts.begin() >= 0);
  CHECK(*firsts.rbegin() <= 20);
  CHECK(firsts.size() > 8);

  videos.config().frame_extraction = "head";
  videos.config().horizontal_flip = 0.5;
  const ClipPlan fixed = videos.plan();
  SampleStream flipping(fixed, videos.config(), 3, 1, 0, 1);
  const std::vector<Sample> samples = draw(flipping, 40);
  int64_t mirrored = 0;
  for (const Sample& sample : samples) {
    // Left half: frame number; right half: 0. Mirrored, the halves swap.
    const std::vector<int64_t> shown = counting_index(sample.video_CFHW);
    const std::vector<int64_t> plain = {0, 2, 5, 7, 10}, swapped = {0, 100, 250, 350, 500};
    CHECK((shown == plain || shown == swapped));
    mirrored += shown == swapped ? 1 : 0;
  }
  CHECK(mirrored > 5);
  CHECK(mirrored < 35);
}

TEST_CASE("A clip that cannot be decoded is replaced, reported once and counted, alike for any threads") {
  VideoFolder videos(6);
  const ClipPlan plan = videos.plan();
  REQUIRE(plan.clips.size() == 6);
  damage(videos.path(1));
  std::filesystem::remove(videos.path(4));
  std::vector<Sample> expected;
  for (const int64_t threads : {1, 4, 8}) {
    INFO(threads << " threads");
    videos.config().decode_threads = threads;
    std::vector<Sample> got;
    StreamStats stats;
    const std::string log = capture_stderr([&] {
      SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
      got = draw(stream, 24);
      stats = stream.stats();
    });
    CHECK(stats.failed_clips == 2);
    CHECK(count_of(log, videos.path(1)) == 1);
    CHECK(count_of(log, videos.path(4)) == 1);
    CHECK(log.find("missing: no such file") != std::string::npos);
    for (int64_t i = 0; i < 24; ++i) {
      const Sample& sample = got[static_cast<size_t>(i)];
      CHECK(sample.index == i);
      CHECK(sample.clip != 1);
      CHECK(sample.clip != 4);
      const int64_t planned = SampleOrder(plan, 5, 1).clip_of(i);
      if (planned != 1 && planned != 4) CHECK(sample.clip == planned);
    }
    if (expected.empty()) expected = got;
    CHECK(same(got, expected));
  }
}

TEST_CASE("A bucket without any decodable clip stops the run with the list") {
  VideoFolder videos(2);
  const ClipPlan plan = videos.plan();
  damage(videos.path(0));
  write_bytes(videos.path(1), "");
  SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
  try {
    stream.next();
    FAIL("accepted");
  } catch (const vmoba::Error& error) {
    CHECK(error.kind() == vmoba::ErrorKind::kInput);
    CHECK(std::string(error.what()).find(videos.path(0)) != std::string::npos);
    CHECK(std::string(error.what()).find(videos.path(1) + ": empty") != std::string::npos);
  }
}

TEST_CASE("A file that is away for a moment is waited for, and the samples are the same") {
  VideoFolder videos(4);
  const ClipPlan plan = videos.plan();
  std::vector<Sample> expected;
  {
    SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
    expected = draw(stream, 8);
  }
  videos.config().patience_s = 60;
  const std::string away = videos.path(2) + ".away";
  std::filesystem::rename(videos.path(2), away);
  std::thread back([&] {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    std::filesystem::rename(away, videos.path(2));
  });
  std::vector<Sample> got;
  StreamStats stats;
  const std::string log = capture_stderr([&] {
    SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
    got = draw(stream, 8);
    stats = stream.stats();
  });
  back.join();
  CHECK(same(got, expected));
  CHECK(stats.failed_clips == 0);
  CHECK(log.find("waiting for the storage") != std::string::npos);
  CHECK(log.find(videos.path(2)) != std::string::npos);
}

TEST_CASE("What the storage did is not final: the clip is used again once it is back") {
  VideoFolder videos(3);
  const ClipPlan plan = videos.plan();
  videos.config().decode_threads = videos.config().prefetch_clips = 1;
  const std::string away = videos.path(1) + ".away";
  std::filesystem::rename(videos.path(1), away);
  const SampleOrder order(plan, 5, 1);
  SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
  for (int64_t i = 0; i < 3; ++i) CHECK(stream.next().clip != 1);
  std::filesystem::rename(away, videos.path(1));
  stream.next();  // was made while the file was away, perhaps
  int64_t used = 0;
  for (int64_t i = 4; i < 12; ++i) used += stream.next().clip == 1 && order.clip_of(i) == 1 ? 1 : 0;
  CHECK(used >= 2);
  for (const ClipFailure& failure : stream.failures()) CHECK_FALSE(failure.final);
}

TEST_CASE("A file that comes back with other content is replaced by other clips, and said") {
  VideoFolder videos(3);
  const ClipPlan plan = videos.plan();
  videos.config().prefetch_clips = 1;
  SampleStream stream(plan, videos.config(), 7, 1, 0, 1);
  draw(stream, stream_epoch(plan));
  make_counting_video(videos.path(1), 200, "25", {"-c:v", "libx264", "-g", "5"});  // sound, and no clip of the plan
  const std::string said = capture_stderr([&] {
    for (const Sample& sample : draw(stream, 2 * stream_epoch(plan)))
      if (sample.index > stream_epoch(plan) + 2) CHECK(plan.clips[size_t(sample.clip)].path != videos.path(1));
  });
  CHECK(said.find(videos.path(1) + " cannot be read and is replaced by other clips: changed: the file had ") !=
        std::string::npos);
  REQUIRE(!stream.failures().empty());
  CHECK(stream.failures().front().final);
}

TEST_CASE("A file of the same size with other bytes is noticed, one with other times alone is not") {
  VideoFolder videos(3);
  const ClipPlan plan = videos.plan();
  videos.config().prefetch_clips = 1;
  const auto all = [&](const std::string& what) {
    INFO(what);
    SampleStream stream(plan, videos.config(), 7, 1, 0, 1);
    draw(stream, stream_epoch(plan));
    return stream.failures();
  };
  CHECK(all("as planned").empty());
  // Copied anew: another inode and other times, the same bytes.
  const std::string whole = read_bytes(videos.path(1));
  std::filesystem::remove(videos.path(1));
  write_bytes(videos.path(1), whole);
  CHECK(all("copied").empty());
  // A sound video of the same size: the comment of the container takes up the difference.
  const auto replaced = [&](const std::vector<std::string>& options) {
    make_counting_video(videos.path(1), 34, "25", options);
    std::string other = read_bytes(videos.path(1));
    REQUIRE(other.size() + 8 <= whole.size());
    const size_t room = whole.size() - other.size();
    std::string box(room, '\0');
    box[2] = static_cast<char>(room >> 8);
    box[3] = static_cast<char>(room & 0xFF);
    box.replace(4, 4, "free");
    write_bytes(videos.path(1), other + box);
  };
  const auto times = std::filesystem::last_write_time(videos.path(1));
  replaced({"-c:v", "libx264", "-g", "12", "-bf", "2", "-crf", "40"});
  std::filesystem::last_write_time(videos.path(1), times);  // as `cp -p` and rsync do
  const auto failures = all("other bytes");
  REQUIRE(failures.size() == 1);
  CHECK(plan.clips[size_t(failures.front().clip)].path == videos.path(1));
  CHECK(failures.front().final);
  CHECK(failures.front().reason.find("changed: the file holds other bytes") == 0);
}

TEST_CASE("Known failures are repeated without a look at the files") {
  VideoFolder videos(4);
  const ClipPlan plan = videos.plan();
  const std::string whole = read_text(videos.path(1));
  damage(videos.path(1));
  std::vector<Sample> expected;
  std::vector<ClipFailure> failures;
  {
    SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
    expected = draw(stream, 16);
    failures = stream.failures();
  }
  REQUIRE_FALSE(failures.empty());
  write_bytes(videos.path(1), whole);  // mended
  SampleStream resumed(plan, videos.config(), 5, 1, 8, 1, 1, nullptr, failures);
  CHECK(same(draw(resumed, 8), {expected.begin() + 8, expected.end()}));
  SampleStream anew(plan, videos.config(), 5, 1, 8, 1);
  CHECK_FALSE(same(draw(anew, 8), {expected.begin() + 8, expected.end()}));
}

TEST_CASE("A wait for a sample can be given up") {
  VideoFolder videos(1);
  const ClipPlan plan = videos.plan();
  videos.config().patience_s = 600;
  std::filesystem::remove(videos.path(0));
  SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
  int64_t asked = 0;
  CHECK_FALSE(stream.next_unless([&] { return ++asked > 2; }));
}

TEST_CASE("No more clips are decoded ahead than the configuration allows") {
  VideoFolder videos(8);
  const ClipPlan plan = videos.plan();
  videos.config().decode_threads = 8;
  videos.config().prefetch_clips = 3;
  // The clips of samples 3 to 7 are gone: whoever reads further ahead than three samples finds out.
  const SampleOrder order(plan, 5, 1);
  for (int64_t i = 3; i < 8; ++i) std::filesystem::remove(plan.clips[static_cast<size_t>(order.clip_of(i))].path);
  SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(stream.stats().failed_clips == 0);
  draw(stream, 8);
  CHECK(stream.stats().failed_clips == 5);
}

TEST_CASE("A stream can be dropped while its threads work") {
  VideoFolder videos(3);
  const ClipPlan plan = videos.plan();
  for (int64_t taken = 0; taken < 4; ++taken) {
    SampleStream stream(plan, videos.config(), 5, 1, 0, 1);
    draw(stream, taken);
  }
}

TEST_CASE("Bytes become -1 to 1") {
  const at::Tensor out = to_unit_range(at::tensor({0, 51, 255}, at::kByte));
  CHECK(out.scalar_type() == at::kFloat);
  CHECK(out[0].item<float>() == -1.0f);
  CHECK(out[1].item<float>() == Approx(-0.6));
  CHECK(out[2].item<float>() == 1.0f);
}

namespace {

// Knows the odd clips, each side apart, and that clip 3 cannot be decoded.
class OddClips : public EncodedClips {
 public:
  std::optional<EncodedClip> find(int64_t clip, bool flip) const override {
    if (clip == 3) return EncodedClip{{}, "truncated"};
    if (clip % 2 == 0) return std::nullopt;
    return EncodedClip{{{"latents", at::tensor({clip, int64_t(flip)})}}, ""};
  }
};

}  // namespace

TEST_CASE("clips that were encoded before are not decoded; the stream is the same otherwise") {
  VideoFolder folder(4);
  folder.config().horizontal_flip = 0.5;
  const ClipPlan plan = plan_clips(folder.config(), kGeometry);
  REQUIRE(plan.clips.size() == 4);
  const OddClips known;
  SampleStream stream(plan, folder.config(), 3, 1, 0, 1, 1, &known), plain(plan, folder.config(), 3, 1, 0, 1);
  std::set<int64_t> sides, shown;
  for (int i = 0; i < 24; ++i) {
    const Sample sample = stream.next(), expected = plain.next();
    CHECK(sample.index == expected.index);
    CHECK(sample.clip != 3);
    if (expected.clip != 3) CHECK(sample.clip == expected.clip);
    CHECK(sample.caption == plan.clips[size_t(sample.clip)].caption);
    CHECK(sample.encoded.empty() == (sample.clip % 2 == 0));
    CHECK(sample.video_CFHW.defined() == sample.encoded.empty());
    shown.insert(sample.clip);
    if (sample.encoded.empty()) continue;
    CHECK(sample.encoded.at("latents")[0].item<int64_t>() == sample.clip);
    sides.insert(sample.encoded.at("latents")[1].item<int64_t>());
  }
  CHECK(shown == std::set<int64_t>{0, 1, 2});
  CHECK(sides == std::set<int64_t>{0, 1});
  CHECK(stream.stats().failed_clips == 1);
}
