// Which clips a contact sheet shows and which steps a grid of samples, and the grid as a picture.
#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "core/drawing.h"
#include "data/dataset.h"
#include "support/catch.h"
#include "support/png.h"
#include "support/process.h"
#include "train/report/contact_sheet.h"
#include "train/report/samples_grid.h"

using namespace vmoba;
using namespace vmoba::train;

TEST_CASE("a contact sheet shows clips of all buckets in turn, each once; a grid its first and last step") {
  data::ClipPlan plan;
  plan.buckets = {{5, 32, 64, 16, 6}, {9, 32, 64, 24, 2}};
  for (int i = 0; i < 8; ++i) {
    data::Clip clip;
    clip.bucket = i < 6 ? 0 : 1;
    clip.frames = i < 6 ? 5 : 9;
    plan.clips.push_back(clip);
  }
  const data::SampleOrder order(plan, 3, 2);
  const auto shown = [&](int64_t most) {
    std::vector<int64_t> clips;
    for (const int64_t sample : contact_sheet_samples(plan, 3, 2, most)) clips.push_back(order.clip_of(sample));
    std::sort(clips.begin(), clips.end());
    return clips;
  };
  CHECK(shown(100) == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7});
  const std::vector<int64_t> four = shown(4);
  REQUIRE(four.size() == 4);
  CHECK(four[1] < 6);
  CHECK(four[2] == 6);
  CHECK(four[3] == 7);

  CHECK(grid_steps({1, 2, 3}, 8) == std::vector<int64_t>{1, 2, 3});
  std::vector<int64_t> many;
  for (int64_t step = 10; step <= 210; step += 10) many.push_back(step);
  CHECK(grid_steps(many, 5) == std::vector<int64_t>{10, 60, 110, 160, 210});
}

TEST_CASE("a grid of pictures has each in its cell, cut off at its edge, and names above them") {
  const auto plain = [](int64_t width, int64_t height, uint8_t red, uint8_t green, uint8_t blue) {
    GridPicture out{width, height, {}};
    for (int64_t i = 0; i < width * height; ++i) out.rgb.insert(out.rgb.end(), {red, green, blue});
    return out;
  };
  PictureGrid grid;
  grid.cell_width = 40;
  grid.cell_height = 20;
  grid.columns = {"step 1", "step 2"};
  // Names may be long and of any script; the second one is cut, and not within a character.
  grid.rows = {"a lift", std::string(200, 'w') + "\xC3\xA9\xC3\xA9\xC3\xA9"};
  grid.pictures = {{plain(40, 20, 200, 10, 20), plain(60, 30, 30, 210, 40)},
                   {GridPicture{}, plain(40, 20, 50, 60, 220)}};
  const test::Picture picture(grid_to_png(grid));
  // Cells are 46 and 46 apart: 6 between them, and a line of 20 above each row and for the columns' names.
  REQUIRE(picture.width() == 98);
  REQUIRE(picture.height() == 118);
  const auto is = [&](int x, int y, int red, int green, int blue) {
    const test::Pixel pixel = picture.pixel(x, y);
    return pixel.red == red && pixel.green == green && pixel.blue == blue;
  };
  CHECK(is(7, 47, 200, 10, 20));
  CHECK(is(45, 65, 200, 10, 20));
  CHECK(is(47, 60, 255, 255, 255));  // between them
  CHECK(is(53, 60, 30, 210, 40));
  CHECK(is(91, 60, 30, 210, 40));
  CHECK(is(93, 60, 255, 255, 255));   // the wide one is cut off
  CHECK(is(20, 100, 255, 255, 255));  // nothing to show
  CHECK(is(60, 100, 50, 60, 220));
  int inked = 0;
  for (int x = 0; x < 98; ++x)
    for (int y = 6; y < 24; ++y) inked += picture.pixel(x, y).red < 128;
  CHECK(inked > 20);
  grid.rows.pop_back();
  CHECK_THROWS_AS(grid_to_png(grid), Error);
}
