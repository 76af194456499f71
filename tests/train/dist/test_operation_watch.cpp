// The watch over operations on a device, with a clock and operations that obey the test.
#include "train/dist/operation_watch.h"

#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "support/catch.h"
#include "support/messages.h"
#include "train/dist/dist_world.h"

using namespace vmoba;
using namespace vmoba::train::dist;

namespace {

struct FakeOperation {
  bool begun = false, finished = false;
};

WatchedOperation watched(FakeOperation& fake) {
  return {"sum", [&fake] { return fake.begun; }, [&fake] { return fake.finished; }};
}

int64_t add_group(OperationWatch& watch, std::vector<int> ranks) {
  return watch.add_group(
      std::move(ranks), [] { return ""; }, [] {});
}

}  // namespace

TEST_CASE("an operation may wait for its own rank's computing without limit, for others up to the limit") {
  double now = 100;
  OperationWatch watch([&] { return now; });
  FakeOperation first, second;
  const int64_t group = add_group(watch, {0, 2});
  watch.submitted(group, watched(first));
  watch.submitted(group, watched(second));
  now += 1000;  // this rank computes
  CHECK_FALSE(watch.poll(45));
  CHECK(watch.progress(group).begun == 0);
  first.begun = true;
  CHECK_FALSE(watch.poll(45));
  CHECK(watch.progress(group).begun == 1);
  now += 44;
  CHECK_FALSE(watch.poll(45));
  first.finished = second.begun = true;  // the second's time counts from here
  CHECK_FALSE(watch.poll(45));
  now += 44;
  CHECK_FALSE(watch.poll(45));
  now += 1;
  const auto failure = watch.poll(45);
  REQUIRE(failure);
  CHECK(failure->message == "sum has waited for other ranks for 45 s");
  CHECK(failure->ranks == std::vector<int>{0, 2});
  CHECK((failure->group == group && failure->number == 2));
  second.finished = true;  // it came after all
  CHECK_FALSE(watch.poll(45));
  const auto progress = watch.progress(group);
  CHECK((progress.submitted == 2 && progress.begun == 2 && progress.finished == 2));
}

TEST_CASE("groups wait beside each other, and who has waited longest is named") {
  double now = 0;
  OperationWatch watch([&] { return now; });
  const int64_t gathers = add_group(watch, {0, 1}), exchanges = add_group(watch, {0, 3});
  FakeOperation gather, exchange, next_exchange;
  watch.submitted(gathers, watched(gather));
  watch.submitted(exchanges, watched(exchange));
  watch.submitted(exchanges, watched(next_exchange));
  exchange.begun = exchange.finished = next_exchange.begun = true;  // though the gather has not
  CHECK_FALSE(watch.poll(10));
  CHECK((watch.progress(gathers).begun == 0 && watch.progress(exchanges).begun == 2));
  now = 5;
  gather.begun = true;
  CHECK_FALSE(watch.poll(10));
  now = 16;  // both are late: the exchange by 16 s, the gather by 11 s
  const auto failure = watch.poll(10);
  REQUIRE(failure);
  CHECK((failure->group == exchanges && failure->ranks == std::vector<int>{0, 3}));
  watch.forget_group(exchanges);
  REQUIRE(watch.poll(10));
  CHECK(watch.poll(10)->group == gathers);
  CHECK(add_group(watch, {0, 2}) == exchanges);  // the number is free again, its counts begin anew
  CHECK(watch.progress(exchanges).begun == 0);
}

TEST_CASE("errors of groups and of the device are failures, of groups that still exist") {
  OperationWatch watch([] { return 0.0; });
  std::string error;
  const int64_t number = watch.add_group(
      {0}, [&] { return error; }, [] {});
  CHECK_FALSE(watch.poll(1));
  error = "remote process exited";
  REQUIRE(watch.poll(1));
  CHECK(watch.poll(1)->message == error);
  CHECK(watch.poll(1)->ranks.empty());
  watch.forget_group(number);
  CHECK_FALSE(watch.poll(1));
  watch.submitted(add_group(watch, {0}),
                  {"sum", [] { return true; }, []() -> bool { throw std::runtime_error("illegal address"); }});
  REQUIRE(watch.poll(1));
  CHECK(test::contains(watch.poll(1)->message, "illegal address"));
}

TEST_CASE("aborting groups is bounded in time") {
  OperationWatch watch;
  CHECK(watch.abort_groups(0));
  std::atomic<int> aborted{0};
  for (int i = 0; i < 2; ++i)
    watch.add_group(
        {0}, [] { return ""; }, [&] { ++aborted; });
  CHECK(watch.abort_groups(60));
  CHECK(aborted == 2);
  static std::atomic<bool> let_go{false};  // the thread outlives the case
  OperationWatch stuck;
  stuck.add_group(
      {0}, [] { return ""; },
      [] {
        while (!let_go) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      });
  static std::atomic<bool> freed{false};
  stuck.add_group(
      {0}, [] { return ""; }, [] { freed = true; });
  CHECK_FALSE(stuck.abort_groups(0.2));
  CHECK(freed);  // one that does not end keeps no other
  let_go = true;
}

TEST_CASE("a device that does not answer keeps neither submitting nor aborting") {
  OperationWatch watch;
  std::atomic<bool> asked{false}, answer{false}, aborted{false};
  const int64_t group = watch.add_group(
      {0}, [] { return ""; }, [&] { aborted = true; });
  watch.submitted(group, {"sum", [] { return true; },
                          [&] {
                            asked = true;
                            while (!answer) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                            return true;
                          }});
  std::thread poller([&] { watch.poll(1); });
  while (!asked) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  watch.submitted(group, {"sum", [] { return false; }, [] { return false; }});
  CHECK(watch.progress(group).submitted == 2);
  CHECK(watch.abort_groups(60));
  CHECK(aborted);
  answer = true;
  poller.join();
  CHECK(watch.progress(group).finished == 1);
}

// Hidden: end the job. test_train_ranks runs them under mpirun.
TEST_CASE("a device operation that one rank never begins", "[.stalled]") {
  World& world = test::world();
  if (world.size() == 1) return;  // brought in by an exclusion
  world.set_timeout_s(2);
  world.note(7, "computing");
  std::vector<int> everyone;
  for (int r = 0; r < world.size(); ++r) everyone.push_back(r);
  const bool missing = world.rank() == world.size() - 1;
  OperationWatch& watch = world.device_watch();
  const int64_t group = add_group(watch, everyone);
  for (int i = 0; i < 3; ++i)
    watch.submitted(group, {"fake sum", [=] { return i < 2 || !missing; }, [=] { return i < 2; }});
  // The host has gone on to wait for the device, as loss.item() would.
  std::this_thread::sleep_for(std::chrono::seconds(40));
}

namespace {

// Every rank's device stops answering.
void stop_answering(World& world) {
  world.set_timeout_s(2);
  world.note(7, "computing");
  world.device_watch().add_group(
      {0, 1},
      []() -> std::string {
        std::this_thread::sleep_for(std::chrono::seconds(60));
        return "";
      },
      [] {});
}

}  // namespace

TEST_CASE("a rank that is stopped while no device answers", "[.stopped]") {
  World& world = test::world();
  if (world.size() == 1) return;
  stop_answering(world);
  if (world.rank() == world.size() - 1) {
    std::this_thread::sleep_for(std::chrono::seconds(1));  // its note is heard
    ::raise(SIGSTOP);
  }
  std::this_thread::sleep_for(std::chrono::seconds(40));
}

TEST_CASE("a device that does not answer", "[.unanswered]") {
  World& world = test::world();
  if (world.size() == 1) return;
  stop_answering(world);
  std::this_thread::sleep_for(std::chrono::seconds(40));
}
