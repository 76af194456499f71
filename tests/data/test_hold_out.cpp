#include "data/hold_out.h"

#include <filesystem>
#include <fstream>
#include <set>

#include "core/check.h"
#include "support/catch.h"
#include "support/process.h"

using namespace vmoba::data;

namespace {

// `files` files of three clips each, in two buckets by turns.
ClipPlan plan_of(int64_t files, const std::string& folder = "/data") {
  ClipPlan plan;
  plan.buckets = {{5, 32, 64, 16, 0}, {9, 32, 64, 24, 0}};
  for (int64_t i = 0; i < files; ++i)
    for (int64_t k = 0; k < 3; ++k) {
      Clip clip;
      clip.path = folder + "/" + std::to_string(i) + ".mp4";
      clip.caption = std::to_string(i);
      clip.start_s = double(k);
      clip.bucket = i % 2;
      clip.frames = plan.buckets[size_t(i % 2)].frames;
      clip.source_fps = 10;
      clip.source_duration_s = 8;
      clip.repeats = 2;
      plan.clips.push_back(clip);
      plan.buckets[size_t(i % 2)].clips += 1;
    }
  return plan;
}

std::set<std::string> files_of(const ClipPlan& plan) {
  std::set<std::string> out;
  for (const Clip& clip : plan.clips) out.insert(clip.path);
  return out;
}

void check_buckets(const ClipPlan& plan) {
  std::vector<int64_t> clips(plan.buckets.size());
  for (const Clip& clip : plan.clips) {
    REQUIRE(clip.bucket < int64_t(plan.buckets.size()));
    CHECK(plan.buckets[size_t(clip.bucket)].frames == clip.frames);
    clips[size_t(clip.bucket)] += 1;
  }
  for (size_t b = 0; b < clips.size(); ++b) {
    CHECK(plan.buckets[b].clips == clips[b]);
    CHECK(clips[b] > 0);
  }
}

}  // namespace

TEST_CASE("a share of the files is held out, with all of their clips") {
  const ClipPlan plan = plan_of(20);
  for (const double share : {0.001, 0.1, 0.25, 0.5}) {
    const SplitPlan split = hold_out(plan, share);
    const auto held = files_of(split.held_out), training = files_of(split.training);
    CHECK(held.size() == std::max<size_t>(1, size_t(share * 20)));
    CHECK(held.size() + training.size() == 20);
    for (const std::string& file : held) CHECK_FALSE(training.contains(file));
    CHECK(split.held_out.clips.size() == 3 * held.size());
    CHECK(split.training.clips.size() == 3 * training.size());
    check_buckets(split.held_out);
    check_buckets(split.training);
  }
  CHECK(files_of(hold_out(plan_of(2), 0.9).training).size() == 1);  // never all
  CHECK_THROWS_AS(hold_out(plan_of(1), 0.5), vmoba::Error);
}

TEST_CASE("which files are held out depends on their names, not on the folder or the other files") {
  const auto names = [](const ClipPlan& plan) {
    std::set<std::string> out;
    for (const std::string& path : files_of(plan)) out.insert(std::filesystem::path(path).filename().string());
    return out;
  };
  const auto first = names(hold_out(plan_of(20), 0.2).held_out);
  CHECK(first == names(hold_out(plan_of(20, "/elsewhere"), 0.2).held_out));
  const auto more = names(hold_out(plan_of(30), 4.0 / 30).held_out);  // ten new files, as many held out
  for (const std::string& name : more)  // who is new was put before the old ones, who keep their order
    if (!first.contains(name)) CHECK(std::stoi(name) >= 20);
}

TEST_CASE("validation shows each clip once, at even distances, a random start in the middle") {
  ClipPlan plan = plan_of(4);
  const ClipPlan some = validation_clips(plan, 3);
  REQUIRE(some.clips.size() == 3);
  CHECK(some.clips[0].path == "/data/0.mp4");
  CHECK(some.clips[1].path == "/data/1.mp4");  // clip 4 of 12
  CHECK(some.clips[1].start_s == 1);
  CHECK(some.clips[2].path == "/data/2.mp4");  // clip 8
  for (const Clip& clip : some.clips) CHECK(clip.repeats == 1);
  check_buckets(some);
  CHECK(validation_clips(plan, 100).clips.size() == 12);
  plan.clips[0].random_start = true;
  plan.clips[0].start_s = 1;
  plan.clips[0].slack_s = 7;
  const ClipPlan middle = validation_clips(plan, 1);
  CHECK_FALSE(middle.clips[0].random_start);
  // 5 frames of a tenth of a second; the last one may begin half a stored frame late.
  CHECK(middle.clips[0].start_s == 4.5);
}

TEST_CASE("joined plans keep the training's clips in front") {
  const SplitPlan split = hold_out(plan_of(6), 0.2);
  const ClipPlan all = joined_plans(split.training, split.held_out);
  REQUIRE(all.clips.size() == 18);
  for (size_t i = 0; i < all.clips.size(); ++i) {
    const bool held = i >= split.training.clips.size();
    CHECK(all.clips[i].held_out == held);
    const Clip& same = held ? split.held_out.clips[i - split.training.clips.size()] : split.training.clips[i];
    CHECK(all.clips[i].path == same.path);
    CHECK(all.clips[i].start_s == same.start_s);
  }
  check_buckets(all);
  CHECK(all.buckets.size() == 2);
  check_buckets(joined_plans({}, split.held_out));
}

TEST_CASE("a file that is held out is not trained on under another path either") {
  const vmoba::test::TemporaryFolder folder;
  for (const char* name : {"0.mp4", "1.mp4", "2.mp4"}) std::ofstream(folder.path() + "/" + name) << name;
  std::filesystem::create_directory(folder.path() + "/links");
  std::filesystem::create_symlink(folder.path() + "/1.mp4", folder.path() + "/links/1.mp4");
  const ClipPlan plan = plan_of(3, folder.path());
  ClipPlan held = plan_of(2, folder.path() + "/links");
  held.clips.erase(held.clips.begin(), held.clips.begin() + 3);
  const ClipPlan left = without_files_of(held, plan);
  CHECK(files_of(left) == std::set<std::string>{folder.path() + "/0.mp4", folder.path() + "/2.mp4"});
  check_buckets(left);
  CHECK_THROWS_AS(without_files_of(plan, plan), vmoba::Error);
}
