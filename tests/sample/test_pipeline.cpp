// The sampling loop against diffusers' WanPipeline run with the same analytic model
// (scripts/make_scheduler_fixtures.py), and what it asks of model, codec and text encoder.
#include "sample/pipeline.h"

#include <ATen/ATen.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/random.h"
#include "support/catch.h"
#include "support/paths.h"

using namespace vmoba;
using namespace vmoba::sample;

namespace {

// The fixture's transformer: velocity = tanh(0.7 x + sum(text) + 0.3 cos(t/150)) + 0.2 x. Records its calls.
class AnalyticDit : public model::Dit {
 public:
  struct Call {
    double timestep, text;
    bool dense;
    at::ScalarType compute_dtype;
    bool grad_enabled;
  };

  at::Tensor forward(const model::DitInput& input, const model::ForwardOptions& options) override {
    const at::Tensor& x = input.latents_BCTHW;
    const double text = input.conditions.text.tokens_BLE.sum().item<double>();
    const double timestep = input.timestep_BG.item<double>();
    calls.push_back({timestep, text, options.dense, options.compute_dtype, at::GradMode::is_enabled()});
    if (explode) return x * std::numeric_limits<float>::infinity();
    if (wrong_shape) return at::zeros({1, 1, 1, 1, 1});
    const at::Tensor phase = at::cos(input.timestep_BG / 150.0) * 0.3;
    return at::tanh(x * 0.7 + input.conditions.text.tokens_BLE.sum() + phase) + x * 0.2;
  }
  const std::vector<model::Parameter>& parameters() const override { return parameters_; }
  std::string config_json() const override { return "{}"; }
  attention::Grid grid(int64_t t, int64_t h, int64_t w) const override {
    VMOBA_CHECK_INPUT(h % 2 == 0 && w % 2 == 0, "expected multiples of 2, found {}x{}", h, w);
    return {t, h / 2, w / 2};
  }
  attention::LayerAttention layer(int64_t, bool) const override { return {}; }
  int64_t layers() const override { return 1; }

  std::vector<Call> calls;
  bool explode = false, wrong_shape = false;

 private:
  std::vector<model::Parameter> parameters_;
};

class TwoChannelCodec : public model::Codec {
 public:
  model::CodecShape shape() const override { return {.channels = 2}; }
  at::Tensor encode(const at::Tensor&) const override { throw_runtime("sampling never encodes"); }
  // Frame f is filled with f/4 - 0.75 (beyond [-1, 1] at neither end), so that the rounding to bytes shows.
  at::Tensor decode(const at::Tensor& latents) const override {
    const int64_t frames = shape().frames(latents.size(2));
    return (at::arange(frames, at::kFloat) / 4 - 0.75)
        .view({1, 1, frames, 1, 1})
        .expand({1, 3, frames, latents.size(3) * 8, latents.size(4) * 8});
  }
};

class ByteEncoder : public model::TextEncoder {
 public:
  int64_t dim() const override { return 3; }
  int64_t max_tokens() const override { return 8; }
  model::TextEmbedding encode(const std::vector<std::string>& prompts) const override {
    at::Tensor out = at::zeros({int64_t(prompts.size()), 8, 3});
    for (size_t b = 0; b < prompts.size(); ++b)
      for (size_t i = 0; i < std::min<size_t>(8, prompts[b].size()); ++i)
        out[b][i] = double(static_cast<unsigned char>(prompts[b][i])) / 1000.0;
    return {out};
  }
};

struct House {
  AnalyticDit dit;
  TwoChannelCodec codec;
  ByteEncoder text;
  SampleConfig config;
  attention::AttentionConfig attention;

  House() {
    config.frames = 5;
    config.height = 16;
    config.width = 32;
    config.steps = 4;
    config.negative_prompt = "blur";
  }
  Pipeline pipeline(const std::string& compute_dtype = "fp32") {
    model::ModelConfig model;
    model.compute_dtype = compute_dtype;
    model.text_dim = 3;
    return Pipeline({{&dit}, codec.shape(), &codec, &text, nullptr}, model, {}, config, attention, at::kCPU);
  }
};

double text_sum(const std::string& prompt) {
  return ByteEncoder().encode({prompt}).tokens_BLE.sum().item<double>();
}

}  // namespace

TEST_CASE("the loop gives the latents of diffusers' WanPipeline") {
  std::ifstream file(test::fixtures() + "/sample/pipeline.json");
  const auto f = nlohmann::json::parse(file);
  REQUIRE(f["cases"].size() == 3);
  for (const auto& c : f["cases"]) {
    House house;
    house.config.scheduler = c["name"];
    house.config.schedule = "diffusers";
    house.config.steps = c["steps"];
    house.config.shift = c["shift"];
    house.config.guidance = c["guidance"];
    house.config.negative_prompt = c["negative_prompt"];
    INFO(c["name"] << " guidance " << c["guidance"]);

    const auto noise = c["noise"].get<std::vector<double>>();
    std::vector<float> drawn(noise.size());
    fill_normal(c["seed"], "sample_noise", c["index"], drawn.data(), int64_t(drawn.size()));
    for (size_t i = 0; i < noise.size(); ++i) REQUIRE(drawn[i] == Approx(noise[i]).epsilon(1e-6).margin(1e-9));

    const at::Tensor latents =
        house.pipeline().generate_latents({.prompt = c["prompt"], .seed = c["seed"], .index = c["index"]}, {});
    REQUIRE(latents.sizes() == at::IntArrayRef({1, 2, 2, 2, 4}));
    CHECK(latents.scalar_type() == at::kFloat);
    const at::Tensor expected = at::tensor(c["latents"].get<std::vector<double>>(), at::kDouble).view(latents.sizes());
    const double error = (latents.to(at::kDouble) - expected).abs().max().item<double>();
    CHECK(error < 1e-5 * expected.abs().max().item<double>());
  }
}

TEST_CASE("guidance asks the model twice a step, with the prompt and with the negative prompt") {
  House house;
  house.pipeline().generate_latents({.prompt = "fox"}, {});
  REQUIRE(house.dit.calls.size() == 8);
  for (size_t i = 0; i < 8; ++i) {
    CHECK(house.dit.calls[i].text == Approx(text_sum(i % 2 ? "blur" : "fox")));
    CHECK(house.dit.calls[i].timestep == house.dit.calls[i / 2 * 2].timestep);
    CHECK_FALSE(house.dit.calls[i].grad_enabled);
  }
  CHECK(house.dit.calls[0].timestep == 999);  // 1000 * (1 - 1e-6), cut to an integer as diffusers does

  house.dit.calls.clear();
  house.config.guidance = 1.0;
  house.pipeline().generate_latents({.prompt = "fox"}, {});
  REQUIRE(house.dit.calls.size() == 4);
  CHECK(house.dit.calls[0].text == Approx(text_sum("fox")));
}

TEST_CASE("the first dense_steps steps are dense, both calls of them") {
  for (int64_t dense : {0, 1, 3, 9}) {
    House house;
    house.attention.dense_steps = dense;
    house.pipeline().generate_latents({.prompt = "fox"}, {});
    REQUIRE(house.dit.calls.size() == 8);
    for (size_t i = 0; i < 8; ++i) CHECK(house.dit.calls[i].dense == (int64_t(i / 2) < dense));
  }
}

TEST_CASE("the compute dtype reaches the model and progress is told every step") {
  House house;
  std::vector<std::pair<int64_t, int64_t>> told;
  Pipeline pipeline = house.pipeline("bf16");
  pipeline.generate_latents({.prompt = "fox"}, [&](int64_t step, int64_t steps) { told.push_back({step, steps}); });
  CHECK(house.dit.calls[0].compute_dtype == at::kBFloat16);
  CHECK(told == std::vector<std::pair<int64_t, int64_t>>{{1, 4}, {2, 4}, {3, 4}, {4, 4}});
}

TEST_CASE("seed and index choose the video") {
  House house;
  auto pipeline = house.pipeline();
  const auto latents = [&](uint64_t seed, int64_t index) {
    return pipeline.generate_latents({.prompt = "fox", .seed = seed, .index = index}, {});
  };
  const at::Tensor first = latents(1, 0);
  CHECK(at::equal(first, latents(1, 0)));
  CHECK_FALSE(at::equal(first, latents(2, 0)));
  CHECK_FALSE(at::equal(first, latents(1, 1)));
}

TEST_CASE("frames are bytes, rounded from [-1, 1]") {
  House house;
  const at::Tensor video = house.pipeline().generate({.prompt = "fox"}, {});
  REQUIRE(video.sizes() == at::IntArrayRef({3, 5, 16, 32}));
  CHECK(video.scalar_type() == at::kByte);
  CHECK(video.is_contiguous());
  // -0.75, -0.5, -0.25, 0, 0.25 -> 255 * (v + 1) / 2 = 31.9, 63.8, 95.6, 127.5 (to even), 159.4
  const int expected[] = {32, 64, 96, 128, 159};
  for (int f = 0; f < 5; ++f) CHECK(video[1][f][7][9].item<int>() == expected[f]);
}

TEST_CASE("sizes that do not fit codec or model are refused before any work") {
  const auto refuse = [](int64_t frames, int64_t height, int64_t width, const std::string& part) {
    House house;
    house.config.frames = frames;
    house.config.height = height;
    house.config.width = width;
    INFO(frames << "x" << height << "x" << width);
    try {
      house.pipeline();
      FAIL("not refused");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::kInput);
      INFO(e.what());
      CHECK(std::string(e.what()).find(part) != std::string::npos);
    }
  };
  refuse(7, 16, 32, "use 5 or 9");
  refuse(5, 20, 32, "multiples of 8");
  refuse(5, 24, 32, "sample.height 24");  // fits the codec, not the model's patch
}

TEST_CASE("a model that answers with infinity or another shape is an error") {
  House house;
  house.dit.explode = true;
  CHECK_THROWS_AS(house.pipeline().generate({.prompt = "fox"}, {}), Error);
  house.dit.explode = false;
  house.dit.wrong_shape = true;
  CHECK_THROWS_AS(house.pipeline().generate({.prompt = "fox"}, {}), Error);
}

TEST_CASE("the configuration round-trips and refuses values out of range") {
  SampleConfig config;
  config.prompts = {"a \"quoted\" fox: yes", "# no comment"};
  config.guidance = 3.25;
  const auto visitor = [](SampleConfig& c) { return [&c](ConfigVisitor& v) { c.visit(v); }; };
  const std::string yaml = config_to_yaml(visitor(config));
  SampleConfig read;
  parse_config(yaml, "test", {}, visitor(read));
  CHECK(config_to_yaml(visitor(read)) == yaml);
  CHECK(read.prompts == config.prompts);
  for (const char* bad :
       {"steps: 0", "guidance: 0.5", "shift: 0", "scheduler: heun", "fps: 0", "frames: 0", "seed: -1"}) {
    INFO(bad);
    CHECK_THROWS_AS(parse_config(bad, "test", {}, visitor(read)), Error);
  }
}
