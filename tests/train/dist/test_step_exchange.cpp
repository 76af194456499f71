// Totals of a step over ranks, against arithmetic; the straggler report.
#include "train/dist/step_exchange.h"

#include <cmath>
#include <limits>

#include "support/catch.h"
#include "support/messages.h"
#include "train/dist/dist_world.h"

using namespace vmoba;
using namespace vmoba::train::dist;

TEST_CASE("the totals of a step are the same on every rank", "[mpi]") {
  World& world = vmoba::test::world();
  const int ranks = world.size(), rank = world.rank();
  const MeshSizes sizes{ranks, 1, 1};
  StepResult mine;
  mine.losses = {0.1 * (rank + 1), 0.7 / (rank + 1)};
  mine.pairs = {{"temporal", {10.0 + rank, 100}}, {"full", {50, 50}}};
  mine.heads = 2;
  mine.pairs_by_head = {{5.0 + rank, 50}, {5, 50}, {25, 25}, {25, 25}, {0, 0}, {0, 0}};  // of three layers
  mine.signal = rank == ranks - 1 ? 15 : 0;
  mine.tokens = 1000;
  mine.failed_clips = rank;
  mine.memory_bytes = 100 - rank;
  mine.data_wait_s = rank;
  mine.own_s = 2;
  mine.flops = 5;
  const StepTotals totals = exchange_step(world, sizes, mine);
  double loss = 0, attended = 0;
  for (int r = 0; r < ranks; ++r) loss += 0.1 * (r + 1) / (2.0 * ranks);
  for (int r = 0; r < ranks; ++r) loss += 0.7 / (r + 1) / (2.0 * ranks);
  for (int r = 0; r < ranks; ++r) attended += 10 + r;
  CHECK(totals.loss == loss);  // in the order of samples: not a bit off
  CHECK(totals.density.at("temporal") == attended / (100.0 * ranks));
  CHECK(totals.density.at("all") == (attended + 50.0 * ranks) / (150.0 * ranks));
  CHECK(totals.density.count("spatial") == 0);
  REQUIRE(totals.density_by_layer.size() == 3);
  CHECK(totals.density_by_layer[0].mean == attended / (100.0 * ranks));
  CHECK(totals.density_by_layer[0].least_head == 0.1);
  CHECK(totals.density_by_layer[0].greatest_head == (attended - 5.0 * ranks) / (50.0 * ranks));
  CHECK(totals.density_by_layer[1].least_head == 1);
  CHECK(std::isnan(totals.density_by_layer[2].mean));
  CHECK(totals.signal == 15);
  CHECK(totals.tokens == 1000 * ranks);
  CHECK(totals.failed_clips == ranks * (ranks - 1) / 2);
  CHECK(totals.memory_bytes == 100);
  CHECK(totals.data_wait_s == ranks - 1);
  CHECK(totals.flops == 5 * ranks);
  CHECK(totals.bad_loss_rank == -1);

  if (rank == ranks - 1) mine.losses[1] = std::numeric_limits<double>::quiet_NaN();
  const StepTotals bad = exchange_step(world, sizes, mine);
  CHECK(std::isnan(bad.loss));
  CHECK(bad.bad_loss_rank == ranks - 1);

  // Ranks of one sequence group show the same samples: they count once.
  mine.losses = {1.0, 2.0};
  const StepTotals shared = exchange_step(world, {1, 1, ranks}, mine);
  CHECK(shared.loss == 1.5);
  CHECK(shared.tokens == 1000);
  CHECK(shared.flops == 5);
  CHECK(shared.density.at("temporal") == attended / (100.0 * ranks));
}

TEST_CASE("the slowest rank is named once per interval") {
  StragglerReport report(2, {"a", "b", "c"});
  StepTotals totals;
  totals.own_s = {1, 3, 1.5};
  totals.data_wait_s_by_rank = {0, 0, 0.5};
  CHECK(report.add(totals).empty());
  const std::string text = report.add(totals);
  CHECK(test::contains(text, "slowest rank 1 on b, 3.000 s"));
  CHECK(test::contains(text, "median 1.500 s"));
  CHECK(test::contains(text, "rank 2 on c, 0.500 s"));
  CHECK(report.add(totals).empty());
  StragglerReport never(0, {"a", "b", "c"});
  CHECK(never.add(totals).empty());
  totals.own_s = {1};
  totals.data_wait_s_by_rank = {0};
  StragglerReport alone(1, {"a"});
  CHECK(alone.add(totals).empty());
}
