// Sizes that fit and that do not, and who is in whose group.
#include "train/dist/mesh.h"

#include "support/catch.h"
#include "support/messages.h"
#include "train/dist/dist_world.h"

using namespace vmoba;
using namespace vmoba::train;
using namespace vmoba::train::dist;

namespace {

ParallelConfig parallel(int64_t data, int64_t shard, int64_t sequence) {
  ParallelConfig config;
  config.data = data;
  config.shard = shard;
  config.sequence = sequence;
  return config;
}

TrainConfig batch(int64_t global, int64_t micro) {
  TrainConfig config;
  config.global_batch = global;
  config.micro_batch = micro;
  return config;
}

}  // namespace

TEST_CASE("mesh sizes fill in the copies and refuse what does not fit") {
  const MeshSizes sizes = mesh_sizes(parallel(0, 4, 2), 64);
  CHECK((sizes.data == 8 && sizes.state_ranks() == 8 && sizes.batch_ranks() == 32));
  CHECK(test::contains(test::refusal_of([] { mesh_sizes(parallel(0, 4, 2), 20); }), "start 16 or 24 ranks"));
  CHECK(test::contains(test::refusal_of([] { mesh_sizes(parallel(3, 2, 1), 8); }), "start 6 ranks"));
}

TEST_CASE("the batch is shared evenly, and passes never straddle a bucket's batch") {
  const auto share = [](int64_t global, int64_t micro, int ranks) {
    return batch_share(batch(global, micro), {ranks, 1, 1});
  };
  CHECK((share(4, 4, 1).micro == 4 && share(4, 4, 1).passes == 1));
  CHECK((share(4, 4, 2).micro == 2 && share(4, 4, 2).passes == 1));
  CHECK((share(4, 2, 4).micro == 1 && share(4, 2, 4).passes == 1));
  CHECK((share(12, 6, 3).micro == 2 && share(12, 6, 3).passes == 2));
  CHECK((share(64, 1, 8).micro == 1 && share(64, 1, 8).passes == 8));
  CHECK(test::contains(test::refusal_of([&] { share(10, 2, 4); }), "use 8 or 12"));
  CHECK(test::contains(test::refusal_of([&] { share(2, 1, 4); }), "use 4 or 8"));
}

TEST_CASE("ranks that share a GPU are refused") {
  check_distinct_gpus({"a", "a", "b", "b"}, {"0", "1", "0", "1"});
  const std::string message = test::refusal_of([] { check_distinct_gpus({"a", "b", "b"}, {"0", "7", "7"}); });
  CHECK(test::contains(message, "ranks 1 and 2 on b"));
}

TEST_CASE("groups of the mesh hold the ranks that they should", "[mpi]") {
  World& world = test::world();
  const int ranks = world.size();
  for (int shard = 1; shard <= ranks; ++shard) {
    for (int sequence = 1; shard * sequence <= ranks; ++sequence) {
      if (ranks % (shard * sequence) != 0) continue;
      Mesh mesh(world, parallel(0, shard, sequence), at::kCPU);
      const int data = ranks / (shard * sequence), rank = world.rank();
      CHECK(mesh.everyone().size() == ranks);
      CHECK(mesh.state().size() == shard * sequence);
      CHECK(mesh.replicas().size() == data);
      CHECK(mesh.sequence().size() == sequence);
      // Every group knows its members: the sum of their numbers.
      const auto sum = [&](Communicator& group) {
        const at::Tensor id = at::full({1}, rank, at::kLong);
        group.all_reduce(id)->wait();
        return id.item<int64_t>();
      };
      const auto range_sum = [](int64_t first, int64_t count, int64_t stride) {
        return count * first + stride * count * (count - 1) / 2;
      };
      const int state = shard * sequence;
      CHECK(sum(mesh.sequence()) == range_sum(rank / sequence * sequence, sequence, 1));
      CHECK(sum(mesh.state()) == range_sum(rank / state * state, state, 1));
      CHECK(sum(mesh.replicas()) == range_sum(rank % state, data, state));
      CHECK(mesh.batch_rank() == rank / sequence);
    }
  }
}
