#include "data/prefetch.h"

#include <chrono>
#include <memory>
#include <stdexcept>

#include "support/catch.h"

using vmoba::data::OrderedPrefetcher;

namespace {

// Counts itself.
struct Counted {
  Counted(int64_t number, std::atomic<int64_t>& alive) : number(number), alive(&alive) { ++alive; }
  Counted(Counted&& other) noexcept : number(other.number), alive(std::exchange(other.alive, nullptr)) {}
  Counted& operator=(Counted&&) = delete;
  ~Counted() {
    if (alive) --*alive;
  }
  int64_t number;
  std::atomic<int64_t>* alive;
};

}  // namespace

TEST_CASE("Results arrive in order however long each takes, and never more than the capacity exist") {
  std::atomic<int64_t> alive{0}, most{0};
  OrderedPrefetcher<std::unique_ptr<Counted>> prefetcher(8, 5, [&](int64_t number, const std::atomic<bool>&) {
    auto made = std::make_unique<Counted>(number, alive);
    int64_t seen = most;
    while (alive > seen && !most.compare_exchange_weak(seen, alive)) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(number % 3 == 0 ? 800 : 10));
    return made;
  });
  for (int64_t i = 0; i < 300; ++i) {
    const auto got = prefetcher.next();
    REQUIRE(got->number == i);
  }
  // The consumer's own one, and its successor that starts while it lives.
  CHECK(most <= 6);
  CHECK(most >= 2);
}

TEST_CASE("An exception belongs to its number; the others still arrive") {
  OrderedPrefetcher<int64_t> prefetcher(4, 4, [](int64_t number, const std::atomic<bool>&) {
    if (number == 2) throw std::runtime_error("two");
    return number;
  });
  CHECK(prefetcher.next() == 0);
  CHECK(prefetcher.next() == 1);
  CHECK_THROWS_AS(prefetcher.next(), std::runtime_error);
  CHECK(prefetcher.next() == 3);
}

TEST_CASE("The destructor cancels work under way and joins") {
  std::atomic<int64_t> cancelled{0}, started{0};
  {
    OrderedPrefetcher<int> prefetcher(3, 3, [&](int64_t, const std::atomic<bool>& cancel) {
      ++started;
      while (!cancel) std::this_thread::yield();
      ++cancelled;
      return 0;
    });
    while (started < 3) std::this_thread::yield();
  }
  CHECK(cancelled == 3);
}

TEST_CASE("A wait is given up where asked, and the result is there for the next one") {
  std::atomic<bool> go{false};
  OrderedPrefetcher<int64_t> prefetcher(1, 2, [&](int64_t number, const std::atomic<bool>& cancel) {
    while (!go && !cancel) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return number;
  });
  CHECK_FALSE(prefetcher.next_unless([] { return true; }));
  go = true;
  CHECK(prefetcher.next() == 0);
  CHECK(prefetcher.next() == 1);
}
