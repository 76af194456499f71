#include "data/buckets.h"

#include <cmath>

#include "core/check.h"
#include "support/catch.h"

using namespace vmoba::data;

namespace {

DataConfig sized(int64_t height, int64_t width, int64_t buckets) {
  DataConfig config;
  config.height = height;
  config.width = width;
  config.aspect_buckets = buckets;
  return config;
}

}  // namespace

TEST_CASE("One aspect bucket is exactly height x width") {
  const auto sizes = aspect_sizes(sized(480, 832, 1), {4, 16});
  REQUIRE(sizes.size() == 1);
  CHECK(sizes[0].height == 480);
  CHECK(sizes[0].width == 832);
}

TEST_CASE("Sizes off the grid are refused and a near one is named") {
  try {
    aspect_sizes(sized(480, 850, 1), {4, 32});
    FAIL("accepted");
  } catch (const vmoba::Error& error) {
    CHECK(error.kind() == vmoba::ErrorKind::kInput);
    CHECK(std::string(error.what()).find("480 x 864") != std::string::npos);
  }
}

TEST_CASE("Aspect buckets keep the area and span the range") {
  const auto sizes = aspect_sizes(sized(480, 832, 7), {4, 16});
  REQUIRE(sizes.size() == 7);
  bool own = false;
  for (const FrameSize& size : sizes) {
    CHECK(size.height % 16 == 0);
    CHECK(size.width % 16 == 0);
    // Each side is rounded by at most 8 pixels, the smallest possible side is sqrt(480 * 832 / 2) = 447 pixels.
    CHECK(static_cast<double>(size.height * size.width) == Approx(480.0 * 832).epsilon(2 * 8.0 / 447 + 1e-3));
    own = own || size == FrameSize{480, 832};
  }
  CHECK(own);
  // 0.5: 447 x 893 rounded; 2.0 the other way round.
  CHECK(sizes.front() == FrameSize{896, 448});
  CHECK(sizes.back() == FrameSize{448, 896});
  CHECK(nearest_size(sizes, 100, 1000) == 0);
  CHECK(nearest_size(sizes, 1920, 1080) ==
        static_cast<int64_t>(std::find(sizes.begin(), sizes.end(), FrameSize{480, 832}) - sizes.begin()));
  CHECK(nearest_size(sizes, 4000, 1000) == 6);
}

TEST_CASE("The nearest aspect is nearest as a ratio") {
  const std::vector<FrameSize> sizes = {{200, 100}, {100, 200}};
  CHECK(nearest_size(sizes, 99, 100) == 0);
  CHECK(nearest_size(sizes, 101, 100) == 1);
}

TEST_CASE("Frame counts are rounded down to 1 + stride n, ascending, without doubles") {
  DataConfig config;
  config.frames = {81, 80, 33, 1, 3, 36};
  CHECK(frame_counts(config, {4, 16}) == std::vector<int64_t>{1, 33, 77, 81});
  CHECK(frame_counts(config, {1, 16}) == std::vector<int64_t>{1, 3, 33, 36, 80, 81});
}
