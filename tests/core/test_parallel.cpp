#include "core/parallel.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/catch.h"

using vmoba::for_each_part;

TEST_CASE("every part runs once, whatever the number of threads") {
  for (const int64_t threads : {0, 1, 3, 64}) {
    for (const int64_t count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      for_each_part(count, threads, [&](int64_t part) { ++runs[static_cast<size_t>(part)]; });
      for (const auto& times : runs) CHECK(times == 1);
    }
  }
}

TEST_CASE("parts run on as many threads as allowed, and the caller's") {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  std::atomic<int> waiting{0};
  for_each_part(3, 3, [&](int64_t) {
    ++waiting;
    while (waiting < 3) std::this_thread::yield();  // ends only where three run at a time
    const std::lock_guard lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  CHECK(seen.size() == 3);
  CHECK(seen.count(std::this_thread::get_id()) == 1);
}

TEST_CASE("the first exception of a part is rethrown, and no part begins behind it") {
  std::atomic<int> begun{0};
  CHECK_THROWS_WITH(for_each_part(100000, 2,
                                  [&](int64_t part) {
                                    ++begun;
                                    if (part == 5) throw std::runtime_error("part 5");
                                    std::this_thread::sleep_for(std::chrono::microseconds(100));
                                  }),
                    "part 5");
  CHECK(begun < 100000);
}
