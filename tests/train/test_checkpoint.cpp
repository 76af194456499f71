// Checkpoints: what is on disk, what survives damage, what a mismatch says. The model is a stand-in with two tensors.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "support/catch.h"
#include "support/process.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/checkpoint_writer.h"
#include "train/optim/adamw.h"

using namespace vmoba;
using namespace vmoba::train;
namespace fs = std::filesystem;

namespace {

class TwoTensors : public model::Dit {
 public:
  explicit TwoTensors(double value) {
    parameters_ = {{"a.weight", at::full({3, 2}, value).requires_grad_()},
                   {"b.bias", at::full({4}, 2 * value).requires_grad_()}};
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
  explicit Run(double value, size_t count = 1) : experts(count) {
    for (Expert& expert : experts) {
      expert.dit = std::make_unique<TwoTensors>(value);
      expert.optimizer = std::make_unique<AdamW>(OptimizerConfig{}, expert.dit->parameters());
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
    experts[expert].update(/*lr=*/1e-2, /*norm=*/0, /*max_norm=*/0);
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
