// Checkpoints: what is on disk, what survives damage, what a mismatch says. The model is a stand-in with two tensors,
// and a matrix in bf16 for optimisers that keep blocks of values.
#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "core/check.h"
#include "support/catch.h"
#include "support/process.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checkpoint_writer.h"
#include "train/checkpoint/checksums.h"
#include "train/checkpoint/run_folder.h"
#include "train/loss_watch.h"
#include "train/optim/optimizer.h"

using namespace vmoba;
using namespace vmoba::train;
namespace fs = std::filesystem;

namespace {

class TwoTensors : public model::Dit {
 public:
  explicit TwoTensors(double value, bool large) {
    parameters_ = {{"a.weight", at::full({3, 2}, value).requires_grad_()},
                   {"b.bias", at::full({4}, 2 * value).requires_grad_()}};
    if (!large) return;
    parameters_.push_back({"blocks.0.c.weight", at::full({64, 65}, value).to(at::kBFloat16).requires_grad_()});
  }
  at::Tensor forward(const model::DitInput& input, const model::ForwardOptions&) override {
    return input.latents_BCTHW;
  }
  const std::vector<model::Parameter>& parameters() const override { return parameters_; }
  std::string config_json() const override { return "{}\n"; }
  attention::Grid grid(int64_t t, int64_t h, int64_t w) const override { return {t, h, w}; }
  attention::LayerAttention layer(int64_t, bool) const override { return {}; }
  int64_t layers() const override { return 1; }

 private:
  std::vector<model::Parameter> parameters_;
};

struct Run {
  explicit Run(double value, size_t count = 1, const std::string& optimizer = "adamw") : experts(count) {
    OptimizerConfig config;
    config.type = optimizer;
    for (Expert& expert : experts) {
      expert.dit = std::make_unique<TwoTensors>(value, optimizer != "adamw");
      expert.optimizer = make_optimizer(config, expert.dit->parameters());
      expert.ema = std::make_unique<Ema>(EmaConfig{true, 0.9}, expert.dit->parameters());
      value += 0.25;
    }
  }
  CheckpointParts parts() { return {experts, "seed: 1\n"}; }
  const std::vector<model::Parameter>& parameters(size_t expert = 0) { return experts[expert].dit->parameters(); }
  // One update from gradients that are `gradient` everywhere.
  void update(size_t expert, double gradient) {
    for (const model::Parameter& p : parameters(expert))
      p.tensor.mutable_grad() = at::full_like(p.tensor, gradient).detach();
    experts[expert].update(/*lr=*/1e-2, /*norm=*/at::zeros({}), /*max_norm=*/0, /*skip=*/{});
  }
  std::vector<Expert> experts;
};

std::string save_checkpoint(const std::string& run_dir, const TrainerState& state, const CheckpointParts& parts,
                            int64_t keep) {
  const auto alone = dist::make_single_communicator();
  CheckpointWriter writer(*alone, run_dir, keep);
  writer.begin(state, parts);
  return writer.finish().folder;
}

void require_equal(Run& a, Run& b, size_t expert) {
  for (size_t i = 0; i < 2; ++i) {
    CHECK(at::equal(a.parameters(expert)[i].tensor, b.parameters(expert)[i].tensor));
    CHECK(at::equal(a.experts[expert].ema->weights()[i].tensor, b.experts[expert].ema->weights()[i].tensor));
  }
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a checkpoint gives back everything, bit by bit") {
  const test::TemporaryFolder folder;
  Run a(0.1);
  a.update(0, 0.5);
  const std::string path = save_checkpoint(folder.path(), {3, 12, 9}, a.parts(), 0);
  CHECK(path == checkpoint_path(folder.path(), 3));

  Run b(7.0);
  const TrainerState state = load_checkpoint(path, b.parts());
  CHECK(state.step == 3);
  CHECK(state.next_sample == 12);
  CHECK(state.seed == 9);
  CHECK(b.experts[0].updates == 1);
  require_equal(a, b, 0);
  // The optimisers agree only if moments and step counts do: one more step on equal gradients.
  a.update(0, -0.3);
  b.update(0, -0.3);
  require_equal(a, b, 0);
  Run c(0.1);
  c.update(0, 0.5);
  CHECK_FALSE(at::equal(c.parameters()[0].tensor, a.parameters()[0].tensor));
}

TEST_CASE("8-bit moments, momentum and weights in bf16 come back bit by bit") {
  for (const char* optimizer : {"adamw_8bit", "muon"}) {
    INFO(optimizer);
    const test::TemporaryFolder folder;
    Run a(0.1, 1, optimizer), b(7.0, 1, optimizer);
    a.update(0, 0.5);
    const std::string path = save_checkpoint(folder.path(), {3, 12, 9}, a.parts(), 0);
    load_checkpoint(path, b.parts());
    require_equal(a, b, 0);
    a.update(0, -0.3);
    b.update(0, -0.3);
    require_equal(a, b, 0);
    Run other(7.0);
    CHECK_FALSE(message_of([&] { load_checkpoint(path, other.parts()); }).empty());
  }
}

TEST_CASE("two experts are saved and come back each with its own number of updates") {
  const test::TemporaryFolder folder;
  Run a(0.1, 2);
  a.update(0, 0.5);
  a.update(1, 0.25);
  a.update(1, 0.125);
  const std::string path = save_checkpoint(folder.path(), {2, 8, 9}, a.parts(), 0);
  for (const char* name : {"transformer", "transformer_ema", "transformer_2", "transformer_2_ema"})
    CHECK(fs::exists(path + "/" + name + "/diffusion_pytorch_model.safetensors"));

  Run b(7.0, 2);
  load_checkpoint(path, b.parts());
  CHECK(b.experts[0].updates == 1);
  CHECK(b.experts[1].updates == 2);
  for (const size_t expert : {0, 1}) {
    require_equal(a, b, expert);
    a.update(expert, -0.3);
    b.update(expert, -0.3);
    require_equal(a, b, expert);
  }
  Run one(0.1);
  CHECK(message_of([&] { load_checkpoint(path, one.parts()); }).find("experts") != std::string::npos);
}

TEST_CASE("a third expert has files of its own") {
  const test::TemporaryFolder folder;
  Run a(0.1, 3), b(7.0, 3);
  for (const size_t expert : {0, 2, 2}) a.update(expert, 0.5);
  const std::string path = save_checkpoint(folder.path(), {2, 8, 9}, a.parts(), 0);
  for (const char* name : {"transformer_3", "transformer_3_ema", "state/optimizer_3.safetensors"})
    CHECK(fs::exists(path + "/" + name));
  load_checkpoint(path, b.parts());
  CHECK(b.experts[1].updates == 0);
  CHECK(b.experts[2].updates == 2);
  for (const size_t expert : {0, 1, 2}) require_equal(a, b, expert);
}

TEST_CASE("a checkpoint of one transformer that does not count updates made one in each step") {
  const test::TemporaryFolder folder;
  Run a(0.1);
  const std::string path = save_checkpoint(folder.path(), {3, 12, 9}, a.parts(), 0);
  std::ofstream(path + "/state/trainer.json") << R"({"format": 1, "step": 3, "next_sample": 12, "seed": 9})";
  load_checkpoint(path, a.parts());
  CHECK(a.experts[0].updates == 3);
}

TEST_CASE("old checkpoints go, new ones stay, leftovers are removed") {
  const test::TemporaryFolder folder;
  Run run(0.1);
  fs::create_directories(folder.path() + "/checkpoint-9.unfinished/transformer");
  fs::create_directories(folder.path() + "/checkpoint-best");
  prepare_run_folder(folder.path());
  CHECK_FALSE(fs::exists(folder.path() + "/checkpoint-9.unfinished"));
  for (int64_t step : {2, 10, 100}) save_checkpoint(folder.path(), {step, step, 0}, run.parts(), 2);
  CHECK(checkpoint_steps(folder.path()) == std::vector<int64_t>{10, 100});
  CHECK(fs::exists(folder.path() + "/checkpoint-best"));
}

TEST_CASE("a damaged or foreign checkpoint is refused with the reason") {
  const test::TemporaryFolder folder;
  Run run(0.1);
  const std::string path = save_checkpoint(folder.path(), {5, 5, 0}, run.parts(), 0);
  CHECK(message_of([&] { load_checkpoint(folder.path() + "/nothing", run.parts()); }).find("--resume") !=
        std::string::npos);
  SECTION("truncated weights") {
    const std::string file = path + "/transformer/diffusion_pytorch_model.safetensors";
    fs::resize_file(file, fs::file_size(file) - 1);
    CHECK_THROWS_AS(load_checkpoint(path, run.parts()), Error);
  }
  SECTION("state that is not JSON") {
    std::ofstream(path + "/state/trainer.json") << "{\"step\": -1}";
    CHECK(message_of([&] { load_checkpoint(path, run.parts()); }).find("damaged") != std::string::npos);
  }
  SECTION("another model") {
    model::write_safetensors(path + "/transformer/diffusion_pytorch_model.safetensors",
                             {{"a.weight", at::zeros({3, 3})}, {"b.bias", at::zeros({4})}});
    CHECK(message_of([&] { load_checkpoint(path, run.parts()); }).find("a.weight") != std::string::npos);
  }
  SECTION("no EMA in it") {
    fs::remove_all(path + "/transformer_ema");
    CHECK(message_of([&] { load_checkpoint(path, run.parts()); }).find("EMA") != std::string::npos);
  }
}

TEST_CASE("an earlier run is set aside, never overwritten") {
  const test::TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  CHECK_FALSE(set_aside_earlier_run(dir).has_value());
  for (int i = 1; i <= 2; ++i) {
    fs::create_directories(dir);
    std::ofstream(dir + "/metrics.jsonl") << i;
    CHECK(set_aside_earlier_run(dir + "/") == dir + "." + std::to_string(i));
    CHECK_FALSE(fs::exists(dir));
  }
  CHECK(test::read_text(dir + ".1/metrics.jsonl") == "1");
  CHECK(test::read_text(dir + ".2/metrics.jsonl") == "2");
}

namespace {

// A checkpoint of step 5 beside one of step 4, and what damage to the first says.
struct Damaged {
  test::TemporaryFolder folder;
  Run run{0.1};
  std::string earlier, path;

  Damaged() {
    earlier = save_checkpoint(folder.path(), {4, 4, 0}, run.parts(), 0);
    run.update(0, 0.5);
    path = save_checkpoint(folder.path(), {5, 5, 0}, run.parts(), 0);
  }
  std::string message() {
    Run other(7.0);
    return message_of([&] { load_checkpoint(path, other.parts()); });
  }
};

const std::string kWeights = "/transformer/diffusion_pytorch_model.safetensors";

}  // namespace

TEST_CASE("whichever bit of whichever file of a checkpoint changes, it is refused and the file named") {
  Damaged damaged;
  REQUIRE(damaged.message().empty());
  int64_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(damaged.path)) {
    if (!entry.is_regular_file()) continue;
    ++files;
    const std::string file = entry.path().string(), whole = test::read_text(file);
    REQUIRE_FALSE(whole.empty());
    for (const size_t at : {size_t(0), whole.size() / 3, whole.size() / 2, whole.size() - 1}) {
      std::string bytes = whole;
      bytes[at] = char(bytes[at] ^ 4);
      std::ofstream(file, std::ios::binary) << bytes;
      const std::string message = damaged.message();
      INFO(file << " byte " << at << ": " << message);
      CHECK(message.find(entry.path().filename().string()) != std::string::npos);
    }
    std::ofstream(file, std::ios::binary) << std::string(whole.size(), '\0');
    CHECK_FALSE(damaged.message().empty());
    fs::remove(file);
    CHECK_FALSE(damaged.message().empty());
    std::ofstream(file, std::ios::binary) << whole;
  }
  CHECK(files == 8);  // two folders of two files, optimiser, manifest, configuration, checksums
  CHECK(damaged.message().empty());
}

TEST_CASE("values that changed, files of another step and added files are told apart") {
  Damaged damaged;
  SECTION("one bit of one tensor") {
    std::string bytes = test::read_text(damaged.path + kWeights);
    bytes.back() = char(bytes.back() ^ 1);
    std::ofstream(damaged.path + kWeights, std::ios::binary) << bytes;
    CHECK(damaged.message().find("'b.bias'") != std::string::npos);
  }
  SECTION("the weights of an earlier step") {
    fs::copy_file(damaged.earlier + kWeights, damaged.path + kWeights, fs::copy_options::overwrite_existing);
    CHECK(damaged.message().find("expected a file of step 5, found one of step 4") != std::string::npos);
  }
  SECTION("the manifest of an earlier step") {
    fs::copy_file(damaged.earlier + "/state/trainer.json", damaged.path + "/state/trainer.json",
                  fs::copy_options::overwrite_existing);
    CHECK(damaged.message().find("checksums") != std::string::npos);
  }
  SECTION("a file that would be read as well") {
    fs::copy_file(damaged.earlier + kWeights, damaged.path + "/transformer/more.safetensors");
    CHECK(damaged.message().find("more.safetensors") != std::string::npos);
  }
  SECTION("a note beside the files is nobody's harm") {
    std::ofstream(damaged.path + "/README.md") << "mine";
    CHECK(damaged.message().empty());
  }
}

TEST_CASE("ranks that share the comparison find together what one finds") {
  Damaged damaged;
  for (const char* file : {"/transformer_ema/diffusion_pytorch_model.safetensors", "/state/optimizer.safetensors"}) {
    std::string bytes = test::read_text(damaged.path + file);
    bytes.back() = char(bytes.back() ^ 1);
    std::ofstream(damaged.path + file, std::ios::binary) << bytes;
  }
  const std::vector<std::string> alone = checkpoint_problems(damaged.path);
  CHECK(alone.size() == 2);
  for (const int64_t ranks : {2, 3, 50}) {
    std::vector<std::string> together;
    for (int64_t rank = 0; rank < ranks; ++rank)
      for (const std::string& problem : checkpoint_problems(damaged.path, rank, ranks)) together.push_back(problem);
    std::sort(together.begin(), together.end());
    CHECK(together == alone);
  }
}

TEST_CASE("weights that are not finite are refused by name, sound checksums or not") {
  const test::TemporaryFolder folder;
  Run run(0.1), other(7.0);
  {
    const at::NoGradGuard no_grad;
    run.parameters()[1].tensor[2] = std::numeric_limits<float>::quiet_NaN();
  }
  const std::string path = save_checkpoint(folder.path(), {5, 5, 0}, run.parts(), 0);
  CHECK(message_of([&] { load_checkpoint(path, other.parts()); }).find("finite values in 'b.bias'") !=
        std::string::npos);
  CHECK(message_of([&] { check_finite_weights(run.experts, "model.weights"); }).find("'b.bias'") != std::string::npos);
  CHECK(verify_folder(path).text.find("'b.bias'") != std::string::npos);
  CHECK_FALSE(verify_folder(folder.path()).sound);
}

TEST_CASE("a checkpoint of an earlier version loads, and says that it cannot be verified") {
  Damaged damaged;
  fs::remove(damaged.path + "/state/checksums.json");
  std::ofstream(damaged.path + "/state/trainer.json")
      << R"({"format": 1, "step": 5, "next_sample": 5, "seed": 0, "updates": [1], "ema": true})";
  CHECK(damaged.message().empty());
  const Verification verified = verify_folder(damaged.path);
  CHECK(verified.sound);
  CHECK(verified.text.find("cannot be verified") != std::string::npos);
}

TEST_CASE("every safetensors file names its step and run, and the manifest the same") {
  const test::TemporaryFolder folder;
  Run run(0.1);
  CheckpointParts parts = run.parts();
  parts.record = {"0123456789abcdef", "here", 3, "1.0", "fedc", 2, "", {{3, "seed", "1", "2"}}};
  const std::string path = save_checkpoint(folder.path(), {5, 5, 0}, parts, 0);
  for (const char* file : {"/transformer/diffusion_pytorch_model.safetensors", "/state/optimizer.safetensors"}) {
    const model::SafetensorsFile opened(path + file);
    CHECK(opened.metadata().at("step") == "5");
    CHECK(opened.metadata().at("run") == "0123456789abcdef");
  }
  const Manifest manifest = read_manifest(path);
  CHECK(manifest.record.run == "0123456789abcdef");
  CHECK(manifest.record.folder == "here");
  CHECK(manifest.record.parent_step == 3);
  REQUIRE(manifest.record.changes.size() == 1);
  CHECK(manifest.record.changes[0].new_value == "2");
}

TEST_CASE("rotation removes what the folder made, and nothing that is named to stay") {
  const test::TemporaryFolder folder;
  Run run(0.1);
  const auto save = [&](int64_t step, const std::string& made_by, Rotation rotation) {
    CheckpointParts parts = run.parts();
    parts.record.folder = made_by;
    const auto alone = dist::make_single_communicator();
    CheckpointWriter writer(*alone, folder.path(), std::move(rotation));
    writer.begin({step, step, 0}, parts);
    writer.finish();
  };
  save(1, "another", 0);
  Rotation one = 1;
  one.folder = "mine";
  one.every = 4;
  one.also = [] { return std::set<int64_t>{3}; };
  fs::create_directories(folder.path() + "/checkpoint-0002/keep");  // a name of the user's
  fs::create_directories(folder.path() + "/checkpoint-2/nothing");  // no checkpoint at all
  for (const int64_t step : {3, 4, 5, 6}) save(step, "mine", one);
  CHECK(checkpoint_steps(folder.path()) == std::vector<int64_t>{1, 2, 3, 4, 6});
  CHECK(fs::exists(folder.path() + "/checkpoint-0002/keep"));
}

TEST_CASE("later checkpoints are set aside whole, with the metrics, as often as it takes") {
  const test::TemporaryFolder folder;
  Run run(0.1);
  const std::string dir = folder.path();
  for (const std::string place : {"/set-aside-1", "/set-aside-2"}) {
    for (const int64_t step : {4, 8, 12}) save_checkpoint(dir, {step, step, 0}, run.parts(), 0);
    std::ofstream(dir + "/metrics.jsonl") << place;
    CHECK(set_aside_later_checkpoints(dir, 4) == dir + place);
    CHECK(checkpoint_steps(dir) == std::vector<int64_t>{4});
    CHECK(checkpoint_steps(dir + place) == std::vector<int64_t>{8, 12});
    CHECK(test::read_text(dir + place + "/metrics.jsonl") == place);
    fs::remove_all(dir + "/checkpoint-4");
  }
  CHECK_FALSE(set_aside_later_checkpoints(dir, 4).has_value());
  // A checkpoint that would take another's name sets that one aside.
  save_checkpoint(dir, {4, 4, 0}, run.parts(), 0);
  save_checkpoint(dir, {4, 4, 0}, run.parts(), 0);
  CHECK(checkpoint_steps(dir + "/set-aside-3") == std::vector<int64_t>{4});
}

TEST_CASE("a run folder keeps its id and its starts") {
  const test::TemporaryFolder folder;
  RunFolder mine = read_run_folder(folder.path());
  CHECK(mine.id.size() == 16);
  CHECK(read_run_folder(folder.path()).id != mine.id);
  mine.starts = {4};
  write_run_folder(folder.path(), mine);
  CHECK(read_run_folder(folder.path()).id == mine.id);
  CHECK(read_run_folder(folder.path()).starts == std::set<int64_t>{4});
  std::ofstream(folder.path() + "/run.json") << "{";
  CHECK(message_of([&] { read_run_folder(folder.path()); }).find("run.json") != std::string::npos);
}

TEST_CASE("a loss far above the median of those before is a spike, and whatever is not finite") {
  LossWatch watch(10);
  CHECK(watch.is_spike(std::numeric_limits<double>::quiet_NaN(), 1));
  CHECK(watch.is_spike(1, std::numeric_limits<double>::infinity()));
  for (size_t i = 0; i < LossWatch::kLeast; ++i) {
    CHECK_FALSE(watch.is_spike(1e6, 1));  // nothing to compare with yet
    watch.add(i % 2 == 0 ? 1 : 3);
  }
  CHECK_FALSE(watch.is_spike(29, 1));
  CHECK(watch.is_spike(31, 1));
  for (size_t i = 0; i < LossWatch::kWindow; ++i) watch.add(100);
  CHECK_FALSE(watch.is_spike(31, 1));
}
