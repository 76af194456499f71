// What attention learns (attention.remainder_beta) among a model's parameters: names, gradients, files.
#include <ATen/ATen.h>

#include <filesystem>

#include "core/check.h"
#include "model/convert.h"
#include "model/hunyuan_fixture.h"
#include "model/weights/save.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"
#include "support/stderr_capture.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::attention::AttentionConfig;
using vmoba::attention::VmobaConfig;
using vmoba::test::contains;
using vmoba::test::refusal_of;

const char* kFile = "diffusion_pytorch_model.safetensors";

AttentionConfig with_remainder(bool learnt) {
  AttentionConfig config = small_vmoba();
  auto& vmoba = config.part<VmobaConfig>();
  vmoba.remainder = vmoba::attention::Remainder::kOneSoftmax;
  if (learnt) vmoba.remainder_beta = vmoba::attention::RemainderBeta::kLearnt;
  return config;
}

std::map<std::string, at::Tensor> learnt_of(const Dit& model) {
  std::map<std::string, at::Tensor> out;
  for (const Parameter& p : model.parameters())
    if (p.name.ends_with(".remainder_beta")) out[p.name] = p.tensor;
  return out;
}

// Values that differ, and that bf16 does not hold.
void fill(const std::map<std::string, at::Tensor>& learnt) {
  double value = 0.3;
  for (const auto& [name, tensor] : learnt)
    tensor.detach().copy_((value += 0.11) * at::arange(1, tensor.numel() + 1).to(at::kFloat) / 3);
}

void save(const Dit& model, const fs::path& folder) {
  std::vector<NamedTensor> tensors;
  for (const Parameter& p : model.parameters()) tensors.push_back({p.name, p.tensor.detach()});
  save_transformer(folder.string(), model.config_json(), tensors_to_write(tensors));
}

ModelConfig of_folder(ModelConfig config, const fs::path& folder) {
  config.weights = folder.string();
  return config;
}

void check_equal(const std::map<std::string, at::Tensor>& found, const std::map<std::string, at::Tensor>& expected) {
  REQUIRE(found.size() == expected.size());
  for (const auto& [name, tensor] : expected) {
    INFO(name);
    CHECK(found.at(name).equal(tensor));
  }
}

}  // namespace

TEST_CASE("sparse layers with a learnt beta have one number a head, 0 at the start; files without them load") {
  AttentionConfig attention = with_remainder(true);
  const auto model = make_dit(wan_t2v_config(), attention, 0, at::kCPU);
  const auto learnt = learnt_of(*model);
  REQUIRE(learnt.size() == 2);
  for (const char* name : {"blocks.0.attn1.remainder_beta", "blocks.1.attn1.remainder_beta"}) {
    CHECK(learnt.at(name).equal(at::zeros({2})));
    CHECK(learnt.at(name).requires_grad());
  }
  ModelConfig config = wan_t2v_config();
  const int64_t plain = parameter_count(config);
  add_learnt(config, attention);
  add_learnt(config, attention);  // once is enough
  CHECK(parameter_count(config) == plain + 4);
  CHECK(parameter_shapes(config).size() == model->parameters().size());
  CHECK_NOTHROW(check_weights(config));

  attention.dense_layers = 1;
  CHECK(learnt_of(*make_dit(wan_t2v_config(), attention, 0, at::kCPU)).size() == 1);
  CHECK(learnt_of(*make_dit(wan_t2v_config(), with_remainder(false), 0, at::kCPU)).empty());
  const auto hunyuan = learnt_of(*make_dit(hunyuan_t2v_config(), with_remainder(true), 0, at::kCPU));
  CHECK(hunyuan.size() == 5);
  CHECK(hunyuan.contains("transformer_blocks.0.attn.remainder_beta"));
  CHECK(hunyuan.contains("single_transformer_blocks.0.attn.remainder_beta"));
}

TEST_CASE("gradients of a learnt beta agree with central differences, recomputed or not") {
  const SafetensorsFile wan = SafetensorsFile(fixture_path("wan_t2v.safetensors"));
  const SafetensorsFile hunyuan = hunyuan_tensors("hunyuan_t2v");
  for (const bool is_wan : {true, false})
    for (const bool recompute : {true, false}) {
      const ModelConfig config = is_wan ? wan_t2v_config() : hunyuan_t2v_config();
      const auto model = make_dit(config, with_remainder(true), 0, at::kCPU);
      fill(learnt_of(*model));
      const std::vector<RecomputePolicy> policies(size_t(layer_count(config)), {recompute});
      const ForwardOptions options{at::kDouble, false, RecomputePlan(policies), nullptr};
      const SafetensorsFile& fixture = is_wan ? wan : hunyuan;
      const at::Tensor cotangent = fixture.tensor("cotangent").to(at::kDouble);
      const DitInput input = is_wan ? DitInput{fixture.tensor("latents").to(at::kDouble), fixture.tensor("timestep"),
                                               {{fixture.tensor("text").to(at::kDouble)}}}
                                    : hunyuan_input(fixture, at::kDouble).input;
      const auto loss = [&] { return (model->forward(input, options) * cotangent).sum(); };
      loss().backward();
      const at::NoGradGuard no_gradients;
      for (const auto& [name, beta] : learnt_of(*model)) {
        INFO(name << " recompute " << recompute);
        REQUIRE(beta.grad().defined());
        for (int64_t n = 0; n < beta.numel(); ++n) {
          const at::Tensor value = beta[n], before = value.clone();
          const double step = std::ldexp(1.0, -12);  // exact in fp32 beside values near 1
          value.copy_(before + step);
          const double up = value.item<double>(), above = loss().item<double>();
          value.copy_(before - step);
          const double below = loss().item<double>(), span = up - value.item<double>();
          value.copy_(before);
          CHECK((above - below) / span == Approx(beta.grad()[n].item<double>()).epsilon(1e-4).margin(1e-7));
          CHECK(beta.grad()[n].item<double>() != 0);
        }
      }
    }
}

TEST_CASE("files keep a learnt beta, through layouts and for whoever does not use it") {
  const vmoba::test::TemporaryFolder temporary;
  const fs::path root = temporary.path();
  for (const char* name : {"wan_t2v", "hunyuan_t2v", "hunyuan_15_t2v"}) {
    INFO(name);
    const ModelConfig config = name == std::string("wan_t2v") ? wan_t2v_config() : hunyuan_config(name);
    const auto model = make_dit(config, with_remainder(true), 0, at::kCPU);
    const auto learnt = learnt_of(*model);
    fill(learnt);
    const fs::path own = root / name / "own";
    save(*model, own);
    check_equal(learnt_of(*make_dit(of_folder(config, own), with_remainder(true), 0, at::kCPU)), learnt);

    // Under another attention they are left out, and the log says so.
    std::unique_ptr<Dit> plain;
    const std::string log = vmoba::test::capture_stderr(
        [&] { plain = make_dit(of_folder(config, own), full_attention(), 0, at::kCPU); });
    CHECK(contains(log, "left out"));
    CHECK(learnt_of(*plain).empty());

    for (const char* layout : {"original", "comfyui"}) {
      INFO(layout);
      ConvertOptions there, back;
      there.in = own.string();
      there.out = (root / name / fmt::format("{}.safetensors", layout)).string();
      there.layout = layout;
      there.dtype = "keep";
      convert_weights(there);
      if (name == std::string("wan_t2v") && layout == std::string("original"))
        CHECK(SafetensorsFile(there.out).contains("blocks.1.self_attn.remainder_beta"));
      back = there;
      back.in = there.out;
      back.head_dim = config.head_dim;
      back.out = (root / name / fmt::format("back-{}", layout)).string();
      back.layout = "diffusers";
      convert_weights(back);
      const SafetensorsFile file((fs::path(back.out) / kFile).string());
      for (const auto& [parameter, beta] : learnt) {
        INFO(parameter);
        CHECK(file.tensor(parameter).equal(beta));
      }
    }
  }
}

TEST_CASE("a beta of another shape, or of a layer that is not there, is refused") {
  const vmoba::test::TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  const auto refusal = [&](const std::string& name, const at::Tensor& beta) {
    const SafetensorsFile file(fixture_path(fmt::format("wan_t2v/{}", kFile)));
    std::vector<NamedTensor> tensors;
    for (const auto& [stored, info] : file.tensors()) tensors.push_back({stored, file.tensor(stored)});
    tensors.push_back({name, beta});
    write_safetensors((folder / kFile).string(), tensors);
    const ModelConfig config = of_folder(wan_t2v_config(), folder);
    return refusal_of([&] { make_dit(config, with_remainder(true), 0, at::kCPU); }) +
           refusal_of([&] { make_dit(config, full_attention(), 0, at::kCPU); });
  };
  CHECK(contains(refusal("blocks.0.attn1.remainder_beta", at::zeros({3})), "blocks.0.attn1.remainder_beta"));
  CHECK(contains(refusal("blocks.7.attn1.remainder_beta", at::zeros({2})), "unknown: 1"));
  CHECK(contains(refusal("blocks.0.attn1.beta", at::zeros({2})), "unknown: 1"));
}

TEST_CASE("one model is seen under attentions that learn and such that do not") {
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  const AttentionConfig learnt = with_remainder(true), zero = with_remainder(false);
  const auto output = [&](Dit& model, const AttentionConfig& attention) {
    ForwardOptions options;
    options.attention = &attention;
    return run_wan(model, fixture, options).at("output");
  };
  const auto learning = make_dit(wan_t2v_config(), learnt, 0, at::kCPU);
  const auto plain = make_dit(wan_t2v_config(), zero, 0, at::kCPU);
  CHECK(output(*plain, learnt).equal(output(*plain, zero)));  // it has none: they are 0
  CHECK(output(*learning, learnt).equal(output(*plain, zero)));
  fill(learnt_of(*learning));
  CHECK(output(*learning, zero).equal(output(*plain, zero)));
  CHECK_FALSE(output(*learning, learnt).equal(output(*plain, zero)));
}

TEST_CASE("heads and layers that a model does not have are refused among those left to their means") {
  for (const std::string place : {"0:99", "99:0"}) {
    AttentionConfig attention = with_remainder(false);
    attention.part<VmobaConfig>().mean_heads = {place};
    ModelConfig config = wan_t2v_config();
    CHECK(contains(refusal_of([&] { add_learnt(config, attention); }), "found " + place));
  }
}
