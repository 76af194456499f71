// Whole sampling runs against diffusers' WanPipeline and WanImageToVideoPipeline on small random transformers, of every
// kind of Wan model (scripts/make_pipeline_fixtures.py).
#include <ATen/ATen.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/random.h"
#include "model/wan_fixture.h"
#include "sample/pipeline.h"
#include "support/messages.h"
#include "support/paths.h"

using namespace vmoba;
using namespace vmoba::sample;

namespace {

ExpertConfig expert(double until_timestep, double guidance = 0) {
  ExpertConfig out;
  out.until_timestep = until_timestep;
  out.guidance = guidance;
  return out;
}

// The fixture script's codec: every fourth frame, colours mixed, pooled 8x8, then mean and deviation of each channel.
class MixingCodec : public model::Codec {
 public:
  explicit MixingCodec(int64_t channels) : channels_(channels) {}
  model::CodecShape shape() const override { return {channels_, 4, 8}; }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override {
    const at::Tensor kept = video_BCFHW.slice(2, 0, video_BCFHW.size(2), 4);
    const at::Tensor pooled = kept.unflatten(4, {-1, 8}).mean(5).unflatten(3, {-1, 8}).mean(4);
    std::vector<at::Tensor> out;
    for (int64_t c = 0; c < channels_; ++c) {
      at::Tensor mixed = at::zeros_like(pooled.select(1, 0));
      for (int64_t k = 0; k < 3; ++k) mixed += pooled.select(1, k) * std::cos(double(c + 2 * k));
      out.push_back((mixed - (0.25 * double(c) - 0.5)) / (0.5 + 0.25 * double(c)));
    }
    return at::stack(out, 1);
  }
  at::Tensor decode(const at::Tensor&) const override { throw_runtime("these tests compare latents"); }

 private:
  int64_t channels_;
};

model::ModelConfig config_of(const std::string& name) {
  if (name == "t2v") return model::wan_t2v_config();
  if (name == "i2v") return model::wan_i2v_config();
  if (name == "flf2v") return model::wan_flf2v_config();
  if (name == "ti2v") return model::wan_ti2v_config();
  model::ModelConfig config = model::wan_i2v_config();
  config.layers = 1;
  config.image_dim = 0;
  config.weights = model::fixture_path("wan_a14b_i2v");
  return config;
}

struct Run {
  model::ModelConfig model;
  SampleConfig sample;
  std::vector<ExpertConfig> experts;
  std::vector<std::unique_ptr<model::Dit>> dits;
  std::unique_ptr<MixingCodec> codec;
  SampleRequest request;

  Run(const std::string& name, const nlohmann::json& c, const model::SafetensorsFile& file) {
    model = config_of(c["model"]);
    model.task = c["task"];
    model.compute_dtype = "fp32";
    sample.steps = 4;
    sample.frames = 9;
    sample.height = 32;
    sample.width = 48;
    sample.scheduler = c["scheduler"];
    sample.schedule = "diffusers";
    sample.shift = c["shift"];
    sample.guidance = c["guidance"];
    dits.push_back(model::make_dit(model, model::full_attention(), 0, at::kCPU));
    if (c.contains("boundary")) {
      experts = {expert(c["boundary"]), expert(0, c.value("guidance_2", 0.0))};
      dits.push_back(model::make_dit(model, model::full_attention(), 0, at::kCPU));
      for (const model::Parameter& parameter : dits.back()->parameters()) parameter.tensor.detach().mul_(0.9);
    }
    codec = std::make_unique<MixingCodec>(model.out_channels);
    request.given = {file.tensor(name + ".latents"),
                     {file.tensor(name + ".prompt_embeds")},
                     {file.tensor(name + ".negative_prompt_embeds")},
                     {}};
    if (model.image_dim > 0) request.given.image_1IM = file.tensor(name + ".image_embeds");
    if (model.task != "t2v" && c.value("image", true)) request.first_CHW = file.tensor("first");
    if (model.task == "flf2v") request.last_CHW = file.tensor("last");
  }

  Pipeline pipeline() const {
    std::vector<model::Dit*> borrowed;
    for (const auto& dit : dits) borrowed.push_back(dit.get());
    return Pipeline({borrowed, codec->shape(), codec.get(), nullptr, nullptr}, model, experts, sample,
                    model::full_attention(), at::kCPU);
  }
  at::Tensor latents() const { return pipeline().generate_latents(request, {}); }
};

const model::SafetensorsFile& fixture() {
  static const model::SafetensorsFile file(test::fixtures() + "/sample/wan_pipelines.safetensors");
  return file;
}

const nlohmann::json& cases() {
  static const nlohmann::json parsed = nlohmann::json::parse(fixture().metadata().at("cases"));
  return parsed;
}

}  // namespace

TEST_CASE("final latents are those of diffusers' pipelines") {
  REQUIRE(cases().size() == 8);
  for (const auto& [name, settings] : cases().items()) {
    INFO(name);
    const Run run(name, settings, fixture());
    // Four steps of fp32; UniPC's coefficients are computed in fp32 over there and in fp64 here.
    CHECK(model::relative_error(run.latents(), fixture().tensor(name + ".result")) < 1e-5);
  }
}

TEST_CASE("experts, guidance of each, image and condition all matter") {
  const auto changed = [](const std::string& name, const std::function<void(Run&)>& change) {
    Run run(name, cases()[name], fixture());
    change(run);
    return model::relative_error(run.latents(), fixture().tensor(name + ".result"));
  };
  CHECK(changed("a14b_t2v", [](Run& run) { run.experts[1].guidance = 0; }) > 1e-3);
  CHECK(changed("a14b_t2v", [](Run& run) { run.experts[0].until_timestep = 925; }) > 1e-3);
  CHECK(changed("a14b_i2v", [](Run& run) { run.experts[0].until_timestep = 937.5; }) >
        1e-3);  // a step at 937 changes sides
  CHECK(changed("i2v", [](Run& run) { run.request.first_CHW = -run.request.first_CHW; }) > 1e-3);
  CHECK(changed("i2v", [](Run& run) { run.request.given.image_1IM = -run.request.given.image_1IM; }) > 1e-3);
  CHECK(changed("flf2v", [](Run& run) { run.request.last_CHW = run.request.first_CHW; }) > 1e-3);
  CHECK(changed("ti2v_image", [](Run& run) { run.request.first_CHW = at::Tensor(); }) > 1e-3);
}

TEST_CASE("an expert more, with the weights and guidance of its neighbour, changes nothing") {
  Run run("a14b_t2v", cases()["a14b_t2v"], fixture());
  const at::Tensor two = run.latents();
  const double boundary = run.experts[0].until_timestep, guidance = run.experts[1].guidance;
  REQUIRE(guidance > 0);
  // Four timesteps near 999, 973, 923 and 800: each of the three experts works.
  run.experts = {expert(950), expert(boundary), expert(0, guidance)};
  run.dits.insert(run.dits.begin() + 1, model::make_dit(run.model, model::full_attention(), 0, at::kCPU));
  CHECK(at::equal(run.latents(), two));
  for (const model::Parameter& parameter : run.dits[1]->parameters()) parameter.tensor.detach().mul_(0.9);
  CHECK(model::relative_error(run.latents(), two) > 1e-3);
}

TEST_CASE("what does not fit is refused with what would") {
  using test::contains;
  using test::refusal_of;
  Run run("i2v", cases()["i2v"], fixture());
  const auto refusal = [](const Run& run) { return refusal_of([&] { run.latents(); }); };
  run.request.given.latents_1CTHW = at::zeros({1, 3, 2, 4, 6});
  CHECK(contains(refusal(run), "latents: expected 1x3x3x4x6"));
  run.request.given.latents_1CTHW = at::Tensor();
  run.request.given.prompt.tokens_BLE = at::zeros({1, 512, 5});
  CHECK(contains(refusal(run), "prompt_embeds: expected [1, L, 4]"));
  run.request.given.prompt.tokens_BLE = at::Tensor();
  CHECK(contains(refusal(run), "expected a text encoder or prompt_embeds"));
  run.request.given.prompt.tokens_BLE = at::zeros({1, 512, 4});
  run.request.first_CHW = at::zeros({3, 32, 32});
  CHECK(contains(refusal(run), "expected an image of 32x48"));
  run.request.first_CHW = at::Tensor();
  CHECK(contains(refusal(run), "first frame"));
  Run text("t2v_unipc", cases()["t2v_unipc"], fixture());
  text.request.first_CHW = at::zeros({3, 32, 48});
  CHECK(contains(refusal(text), "model.task"));
  text.experts = {expert(875), expert(0)};
  CHECK(contains(refusal_of([&] { text.pipeline(); }), "experts: expected 2 transformer(s), found 1"));
}

TEST_CASE("the default negative prompt is the published one of the model") {
  model::ModelConfig model;
  const SampleConfig config;
  model::TextEncoderConfig text;
  CHECK(resolved(config, model, text).negative_prompt.empty());  // the hash encoder knows no such words
  text.type = "umt5";
  const std::string plain = resolved(config, model, text).negative_prompt;
  // Length in bytes of sample_neg_prompt in wan/configs/shared_config.py of Wan-Video/Wan2.1, and its 64-bit FNV-1a.
  CHECK(plain.size() == 403);
  CHECK(hash_name(plain) == 0x3c253eb6aa903a6au);
  model.task = "i2v";
  CHECK(resolved(config, model, text).negative_prompt == plain);
  model.image_dim = 1280;
  CHECK(resolved(config, model, text).negative_prompt == "镜头晃动，" + plain);
  model.task = "flf2v";
  CHECK(resolved(config, model, text).negative_prompt == "镜头切换，镜头晃动，" + plain);
  SampleConfig own;
  own.negative_prompt = "blur";
  CHECK(resolved(own, model, text).negative_prompt == "blur");
}
