// Checkpoints: what is on disk, what survives damage, what a mismatch says. The model is a stand-in with two tensors.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "support/catch.h"
#include "support/process.h"
#include "train/checkpoint.h"

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
  explicit Run(double value) : dit(value), optimizer({}, dit.parameters()), ema({true, 0.9}, dit.parameters()) {}
  CheckpointParts parts() { return {dit, optimizer, &ema, "seed: 1\n"}; }
  TwoTensors dit;
  AdamW optimizer;
  Ema ema;
};

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
  for (const model::Parameter& p : a.dit.parameters()) p.tensor.mutable_grad() = at::full_like(p.tensor, 0.5).detach();
  a.optimizer.step(1e-2);
  a.ema.update(0);
  const std::string path = save_checkpoint(folder.path(), {3, 12, 9}, a.parts(), 0);
  CHECK(path == checkpoint_path(folder.path(), 3));

  Run b(7.0);
  const TrainerState state = load_checkpoint(path, b.parts());
  CHECK(state.step == 3);
  CHECK(state.next_sample == 12);
  CHECK(state.seed == 9);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(at::equal(a.dit.parameters()[i].tensor, b.dit.parameters()[i].tensor));
    CHECK(at::equal(a.ema.weights()[i].tensor, b.ema.weights()[i].tensor));
  }
  // The optimisers agree only if moments and step counts do: one more step on equal gradients.
  for (Run* run : {&a, &b}) {
    for (const model::Parameter& p : run->dit.parameters())
      p.tensor.mutable_grad() = at::full_like(p.tensor, -0.3).detach();
  }
  Run c(0.1);
  for (const model::Parameter& p : c.dit.parameters()) p.tensor.mutable_grad() = at::full_like(p.tensor, 0.5).detach();
  c.optimizer.step(1e-2);
  CHECK(at::equal(c.dit.parameters()[0].tensor, a.dit.parameters()[0].tensor));
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
