// Checkpoints that several ranks write together: the same bytes as one process writes, read back by any number of ranks
// that hold the state in any way, and nothing left where one rank fails.
#include <ATen/ATen.h>

#include <filesystem>
#include <numeric>
#include <optional>

#include "core/random.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "support/file_size_limit.h"
#include "support/messages.h"
#include "support/process.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checkpoint_tensors.h"
#include "train/checkpoint/checkpoint_writer.h"
#include "train/dist/dist_world.h"
#include "train/dist/gradient_sums.h"

using namespace vmoba;
using namespace vmoba::train;
using namespace vmoba::train::dist;
namespace fs = std::filesystem;

namespace {

model::ModelConfig tiny_model() {
  model::ModelConfig config;
  config.layers = 2;
  config.heads = 2;
  config.head_dim = 6;
  config.own<model::WanConfig>().ffn_dim = 13;  // nothing that the ranks divide
  config.in_channels = config.out_channels = 4;
  config.text_dim = 7;
  config.own<model::WanConfig>().freq_dim = 10;
  return config;
}

// Values that depend on the tensor's name and `salt` alone.
at::Tensor values_of(const std::string& name, const std::vector<int64_t>& shape, int salt) {
  const at::Tensor out = at::empty(shape, at::kFloat);
  fill_normal(uint64_t(salt), name, 0, out.mutable_data_ptr<float>(), out.numel());
  return out;
}

// Keeps a value of each parameter's value, and one of every run of five.
class BlockState final : public Optimizer {
 public:
  static constexpr int64_t kValues = 5;
  explicit BlockState(const std::vector<model::Parameter>& parameters)
      : Optimizer(parameters, [](const model::Parameter&) {
          return std::vector<StateLayout>{{"moment", at::kFloat}, {"scale", at::kFloat, kValues}};
        }) {}
  void step(const Update&) override {}
  void set_steps(int64_t) override {}
};

// A rank's expert: `together` a part of it, else all. With AdamW, or in `blocks` with state of runs of values.
class Member {
 public:
  Member(Communicator& group, bool together, bool blocks = false) : alone_(make_single_communicator()) {
    Expert expert;
    if (together) expert.shards = std::make_shared<ShardedWeights>(group, *alone_, blocks ? BlockState::kValues : 1);
    expert.dit = model::make_dit(tiny_model(), {}, 1, at::kCPU, expert.shards.get());
    if (blocks)
      expert.optimizer = std::make_unique<BlockState>(expert.dit->trainable());
    else
      expert.optimizer = make_optimizer(OptimizerConfig{}, expert.dit->trainable());
    expert.ema = std::make_unique<Ema>(EmaConfig{true, 0.9}, expert.dit->trainable());
    (together ? expert.holders : expert.copies) = &group;
    experts_.push_back(std::move(expert));
  }
  CheckpointParts parts() { return {experts_, "seed: 1\n"}; }

  void fill(int salt) {
    for_each(
        [&](const HeldTensor& tensor, const at::Tensor& whole) {
          const at::NoGradGuard no_grad;
          const ValueRun own = held_run(experts_[0], tensor);
          tensor.held.view(-1).narrow(0, 0, own.count).copy_(whole.view(-1).narrow(0, own.begin, own.count));
        },
        salt);
  }
  bool holds(int salt) {
    bool same = true;
    for_each(
        [&](const HeldTensor& tensor, const at::Tensor& whole) {
          const ValueRun own = held_run(experts_[0], tensor);
          same &=
              at::equal(tensor.held.view(-1).narrow(0, 0, own.count), whole.view(-1).narrow(0, own.begin, own.count));
        },
        salt);
    return same;
  }

 private:
  template <typename Action>
  void for_each(Action action, int salt) {
    int kind = 0;
    for (const auto& tensors : {held_weights(experts_[0]), held_average(experts_[0]), held_state(experts_[0])}) {
      for (const HeldTensor& tensor : tensors) action(tensor, values_of(tensor.name, tensor.shape, 10 * salt + kind));
      ++kind;
    }
  }

  std::unique_ptr<Communicator> alone_;
  std::vector<Expert> experts_;
};

// The first `count` ranks; the others are a group of their own.
std::unique_ptr<Communicator> first_ranks(World& world, int count) {
  const bool in = world.rank() < count;
  std::vector<int> ranks(size_t(in ? count : world.size() - count));
  std::iota(ranks.begin(), ranks.end(), in ? 0 : count);
  return world.make_group(ranks);
}

// One folder that all ranks see.
std::string shared_folder(World& world, const std::optional<test::TemporaryFolder>& own) {
  return all_gather_text(world.control(), own ? own->path() : "").front();
}

std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) out.push_back(fs::relative(entry.path(), folder).string());
  std::sort(out.begin(), out.end());
  return out;
}

void check_same_files(const std::string& a, const std::string& b) {
  REQUIRE(files_in(a) == files_in(b));
  CHECK(files_in(a).size() == 8);
  for (const std::string& file : files_in(a)) {
    INFO(file);
    CHECK(test::read_text(a + "/" + file) == test::read_text(b + "/" + file));
  }
}

}  // namespace

// `blocks`: see Member.
void check_any_ranks(bool blocks) {
  World& world = test::world();
  std::optional<test::TemporaryFolder> own;
  if (world.rank() == 0) own.emplace();
  const std::string run_dir = shared_folder(world, own);
  const auto alone = make_single_communicator();
  if (world.rank() == 0) {
    Member single(*alone, false, blocks);
    single.fill(1);
    CheckpointWriter writer(*alone, run_dir + "/single", 0);
    fs::create_directories(run_dir + "/single");
    writer.begin({1, 4, 9}, single.parts());
    writer.finish();
  }
  for (int savers = 1; savers <= world.size(); ++savers) {
    const auto group = first_ranks(world, savers);
    for (const bool together : {false, true}) {
      const std::string dir = run_dir + "/" + std::to_string(savers) + (together ? "together" : "each");
      INFO(savers << " ranks save, " << (together ? "a part each" : "all hold everything"));
      if (world.rank() == 0) fs::create_directories(dir);
      barrier(world.control());
      if (world.rank() < savers) {
        Member member(*group, together, blocks);
        member.fill(1);
        CheckpointWriter writer(*group, dir, 0);
        writer.begin({1, 4, 9}, member.parts());
        member.fill(2);  // training goes on meanwhile
        CHECK(writer.finish().folder == checkpoint_path(dir, 1));
      }
      barrier(world.control());
      if (world.rank() == 0) check_same_files(run_dir + "/single/checkpoint-1", dir + "/checkpoint-1");
    }
  }
  for (int loaders = 1; loaders <= world.size(); ++loaders) {
    const auto group = first_ranks(world, loaders);
    for (const bool together : {false, true}) {
      Member member(*group, together, blocks);
      CHECK_FALSE(member.holds(1));
      const TrainerState state = load_checkpoint(run_dir + "/single/checkpoint-1", member.parts());
      CHECK(state.next_sample == 4);
      CHECK(member.holds(1));
    }
  }
  barrier(world.control());
}

TEST_CASE("a checkpoint of any ranks is the one of a single process, and any ranks go on from it", "[mpi]") {
  check_any_ranks(/*blocks=*/false);
}

TEST_CASE("so is one with state that runs of values share", "[mpi]") {
  check_any_ranks(/*blocks=*/true);
}

TEST_CASE("a rank that cannot write fails the save on all and leaves older checkpoints alone", "[mpi]") {
  World& world = test::world();
  std::optional<test::TemporaryFolder> own;
  if (world.rank() == 0) own.emplace();
  const std::string run_dir = shared_folder(world, own);
  Member member(world.control(), true);
  CheckpointWriter writer(world.control(), run_dir, 2);
  const auto save = [&](int64_t step) {
    writer.begin({step, step, 9}, member.parts());
    writer.finish();
  };
  save(1);
  const int failing = world.size() - 1;
  std::string message;
  {
    std::optional<test::FileSizeLimit> limit;
    if (world.rank() == failing) limit.emplace(500);
    message = test::error_of(ErrorKind::kRuntime, [&] { save(2); });
  }
  INFO(message);
  CHECK(test::contains(message, "File too large"));
  CHECK(test::contains(message, "older checkpoints are untouched"));
  if (world.size() > 1) CHECK(test::contains(message, "rank " + std::to_string(failing) + ": "));
  CHECK(checkpoint_steps(run_dir) == std::vector<int64_t>{1});
  CHECK_FALSE(fs::exists(unfinished_path(run_dir, 2)));
  barrier(world.control());
  save(3);
  save(4);
  CHECK(checkpoint_steps(run_dir) == std::vector<int64_t>{3, 4});
  load_checkpoint(checkpoint_path(run_dir, 4), member.parts());
  barrier(world.control());
}
