#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include <fmt/ranges.h>

#include "core/check.h"
#include "core/file.h"
#include "core/random.h"
#include "model/common/norm.h"
#include "model/dit.h"
#include "model/wan/wan_parameters.h"
#include "model/wan_fixture.h"
#include "support/messages.h"

namespace {

using namespace vmoba::model;
using vmoba::Error;
using vmoba::attention::Grid;
using vmoba::test::contains;
using vmoba::test::refusal_of;

void check_parity(const ModelConfig& config, const std::string& name) {
  const SafetensorsFile fixture(fixture_path(fmt::format("{}.safetensors", name)));
  const auto model = make_dit(config, full_attention(), 0, at::kCPU);
  const auto results = run_wan(*model, fixture, {});
  // The file also has latents, timestep, text, cotangent, and the image where there is one.
  CHECK(results.size() + 4 + fixture.contains("image") == fixture.tensors().size());
  for (const auto& [key, found] : results) {
    INFO(name << " " << key);
    CHECK(relative_error(found, fixture.tensor(key)) <= 1e-5);
  }
}

ModelConfig random_config() {
  ModelConfig config = wan_t2v_config();
  config.weights.clear();
  return config;
}

}  // namespace

TEST_CASE("outputs and all gradients agree with diffusers' WanTransformer3DModel") {
  check_parity(wan_t2v_config(), "wan_t2v");
  check_parity(wan_variant_config(), "wan_variant");
  check_parity(wan_i2v_config(), "wan_i2v");
  check_parity(wan_flf2v_config(), "wan_flf2v");
  check_parity(wan_ti2v_config(), "wan_ti2v");
}

TEST_CASE("a timestep for each latent frame equals the same timestep for each of its tokens") {
  const SafetensorsFile fixture(fixture_path("wan_ti2v.safetensors"));
  const auto model = make_dit(wan_ti2v_config(), small_vmoba(), 0, at::kCPU);
  const at::Tensor timestep_BS = fixture.tensor("timestep");  // 3 frames of 2 x 3 patches, the first at 0
  REQUIRE(timestep_BS.sizes() == at::IntArrayRef({2, 18}));
  const auto forward = [&](const at::Tensor& timestep) {
    return model->forward({fixture.tensor("latents"), timestep, {{fixture.tensor("text")}}}, {}).detach();
  };
  const at::Tensor by_token = forward(timestep_BS);
  CHECK(relative_error(forward(timestep_BS.view({2, 3, 6}).select(2, 0)), by_token) <= 1e-6);
  const at::Tensor whole_B = timestep_BS.select(1, 17);
  CHECK(relative_error(forward(whole_B), by_token) > 1e-3);  // the first frame's timestep matters
  CHECK(forward(whole_B).equal(forward(whole_B.unsqueeze(1))));
}

TEST_CASE("activation checkpointing changes no bit") {
  for (const ModelConfig& config : {wan_t2v_config(), wan_i2v_config(), wan_ti2v_config()}) {
    const SafetensorsFile fixture(config.weights + ".safetensors");
    for (const auto& [attention, dtype] : {std::pair{full_attention(), at::kFloat},
                                           {full_attention(), at::kBFloat16},
                                           {small_vmoba(), at::kFloat},
                                           {small_vmoba(), at::kBFloat16}}) {
      const auto model = make_dit(config, attention, 0, at::kCPU);
      vmoba::attention::AttentionStats plain_stats, checkpointed_stats;
      const auto plain = run_wan(*model, fixture, {dtype, false, {}, &plain_stats});
      const auto checkpointed =
          run_wan(*model, fixture, {dtype, false, every_block(config, {true}), &checkpointed_stats});
      for (const auto& [key, value] : plain) {
        INFO(config.weights << " " << attention.backend << " " << c10::toString(dtype) << " " << key);
        CHECK(checkpointed.at(key).equal(value));
      }
      CHECK(plain_stats.densities() == checkpointed_stats.densities());
    }
  }
}

TEST_CASE("checkpointing with frozen parameters gives the remaining gradients") {
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  const auto model = make_dit(wan_t2v_config(), full_attention(), 0, at::kCPU);
  const auto all = run_wan(*model, fixture, {});
  const std::string kept = "blocks.1.attn1.to_q.weight";
  for (const Parameter& parameter : model->parameters()) parameter.tensor.set_requires_grad(parameter.name == kept);
  ForwardOptions options;
  options.recompute = every_block(wan_t2v_config(), {true});
  const auto some = run_wan(*model, fixture, options);
  CHECK(some.at("grad." + kept).equal(all.at("grad." + kept)));
  CHECK(some.at("grad.input.text").equal(all.at("grad.input.text")));
  CHECK_FALSE(some.at("grad.blocks.0.attn1.to_q.weight").defined());
}

TEST_CASE("fp64 computes in fp64, bf16 stays near fp32") {
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  const auto model = make_dit(wan_t2v_config(), full_attention(), 0, at::kCPU);
  const auto precise = run_wan(*model, fixture, {at::kDouble});
  CHECK(precise.at("output").scalar_type() == at::kDouble);
  CHECK(relative_error(precise.at("output"), fixture.tensor("output")) <= 1e-5);
  const auto coarse = run_wan(*model, fixture, {at::kBFloat16});
  CHECK(coarse.at("output").scalar_type() == at::kFloat);
  // bf16 has 8 bits: each of about ten roundings on the way through two blocks adds up to 2^-9 of a value.
  const double error = relative_error(coarse.at("output"), precise.at("output"));
  CHECK(error <= 10 * std::ldexp(1.0, -9) * 2);
  CHECK(error > 1e-5);  // it really computed in bf16
}

TEST_CASE("gradients in fp64 agree with central differences, through VMoBA and checkpointing") {
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  const auto model = make_dit(wan_t2v_config(), small_vmoba(), 0, at::kCPU);
  const at::Tensor timestep = fixture.tensor("timestep"), text = fixture.tensor("text").to(at::kDouble);
  const at::Tensor cotangent = fixture.tensor("cotangent").to(at::kDouble);
  const ForwardOptions options{at::kDouble, false, every_block(wan_t2v_config(), {true}), nullptr};
  const auto loss = [&](const at::Tensor& latents) {
    return (model->forward({latents, timestep, {{text}}}, options) * cotangent).sum();
  };
  const at::Tensor latents = fixture.tensor("latents").to(at::kDouble).requires_grad_(true);
  loss(latents).backward();
  const at::Tensor direction = at::empty_like(latents);
  std::vector<float> normals(size_t(latents.numel()));
  vmoba::fill_normal(3, "direction", 0, normals.data(), latents.numel());
  direction.copy_(at::from_blob(normals.data(), latents.sizes(), at::kFloat));
  const double expected = (latents.grad() * direction).sum().item<double>();
  const double step = 1e-6;  // truncation step^2, rounding 1e-16/step: both near 1e-10
  const at::NoGradGuard no_gradients;
  const double found =
      (loss(latents + step * direction) - loss(latents - step * direction)).item<double>() / (2 * step);
  CHECK(found == Approx(expected).epsilon(1e-6));
}

TEST_CASE("VMoBA that selects everything equals full attention, and dense forces it") {
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  const auto full = make_dit(wan_t2v_config(), full_attention(), 0, at::kCPU);
  const at::Tensor expected = run_wan(*full, fixture, {}).at("output");
  vmoba::attention::AttentionConfig everything = small_vmoba();
  everything.part<vmoba::attention::VmobaConfig>().tau = 1;
  const auto selected = make_dit(wan_t2v_config(), everything, 0, at::kCPU);
  CHECK(relative_error(run_wan(*selected, fixture, {}).at("output"), expected) <= 1e-5);
  const auto sparse = make_dit(wan_t2v_config(), small_vmoba(), 0, at::kCPU);
  CHECK(relative_error(run_wan(*sparse, fixture, {}).at("output"), expected) > 1e-3);
  vmoba::attention::AttentionStats stats;
  CHECK(run_wan(*sparse, fixture, {at::kFloat, true, {}, &stats}).at("output").equal(expected));
  CHECK(stats.densities() == std::map<std::string, double>{{"all", 1.0}, {"full", 1.0}});
  CHECK(sparse->layers() == 2);
  CHECK(sparse->layer(0, false).sparse());
  CHECK_FALSE(sparse->layer(0, true).sparse());
}

TEST_CASE("random weights follow Wan's rules and depend on seed and name alone") {
  const ModelConfig config = random_config();
  const auto model = make_dit(config, full_attention(), 7, at::kCPU);
  int64_t count = 0;
  std::map<std::string, at::Tensor> tensors;
  for (const Parameter& parameter : model->parameters()) {
    count += parameter.tensor.numel();
    CHECK(parameter.tensor.is_leaf());
    CHECK(parameter.tensor.requires_grad());
    CHECK(parameter.tensor.scalar_type() == at::kFloat);
    tensors[parameter.name] = parameter.tensor.detach();
  }
  CHECK(count == parameter_count(config));
  CHECK(tensors.size() == model->parameters().size());
  const double width = 40;
  const auto deviation = [&](const std::string& name) { return tensors.at(name).std().item<double>(); };
  CHECK(tensors.at("proj_out.weight").eq(0).all().item<bool>());
  CHECK(tensors.at("blocks.1.attn1.norm_q.weight").eq(1).all().item<bool>());
  CHECK(tensors.at("blocks.1.norm2.weight").eq(1).all().item<bool>());
  CHECK(tensors.at("blocks.1.ffn.net.2.bias").eq(0).all().item<bool>());
  // Sample deviations of n values scatter by about 1/sqrt(2n) of themselves; four times that.
  CHECK(deviation("condition_embedder.time_embedder.linear_2.weight") == Approx(0.02).epsilon(4 / std::sqrt(2 * 1600)));
  CHECK(deviation("blocks.0.scale_shift_table") == Approx(1 / std::sqrt(width)).epsilon(4 / std::sqrt(2 * 240)));
  const double bound = std::sqrt(6 / (width + config.own<WanConfig>().ffn_dim));
  const at::Tensor& up = tensors.at("blocks.0.ffn.net.0.proj.weight");
  CHECK(up.abs().max().item<double>() <= bound);
  CHECK(up.abs().max().item<double>() > 0.98 * bound);

  ModelConfig deeper = config;
  deeper.layers = 3;
  const auto other = make_dit(deeper, full_attention(), 7, at::kCPU);
  for (const Parameter& parameter : other->parameters()) {
    const auto found = tensors.find(parameter.name);
    if (found != tensors.end()) CHECK(found->second.equal(parameter.tensor.detach()));
  }
  const auto reseeded = make_dit(config, full_attention(), 8, at::kCPU);
  CHECK_FALSE(reseeded->parameters()[0].tensor.equal(model->parameters()[0].tensor));
}

TEST_CASE("published sizes: every name and shape") {
  // Of diffusers' WanTransformer3DModel, printed by scripts/make_wan_fixtures.py --count: number of tensors, of values,
  // and the hash of the sorted lines "name AxBxC".
  const auto check = [](const char* model, const ModelConfig& config, size_t tensors, int64_t values, uint64_t hash) {
    INFO(model);
    std::vector<std::string> lines;
    for (const ParameterSpec& spec : wan_parameter_specs(config))
      lines.push_back(fmt::format("{} {}", spec.name, fmt::join(spec.shape, "x")));
    std::sort(lines.begin(), lines.end());
    CHECK(lines.size() == tensors);
    CHECK(parameter_count(config) == values);
    CHECK(vmoba::hash_name(fmt::format("{}", fmt::join(lines, "\n"))) == hash);
  };
  ModelConfig config;
  check("2.1 T2V 1.3B", config, 825, 1418996800, 0xcf7ad081df4f1f9d);
  config.heads = config.layers = 40;
  config.own<WanConfig>().ffn_dim = 13824;
  check("2.1 T2V 14B, 2.2 T2V A14B", config, 1095, 14288491584, 0x19bca002ab584777);
  config.in_channels = 36;
  check("2.2 I2V A14B", config, 1095, 14288901184, 0x38241d25c447fff1);
  config.image_dim = 1280;
  check("2.1 I2V 14B", config, 1303, 16394878784, 0x19fe64b0e3852431);
  config.own<WanConfig>().image_pos_tokens = 514;
  check("2.1 FLF2V 14B", config, 1304, 16395536704, 0x2da3833bfe09a1a5);
  config = {};
  config.heads = 24;
  config.own<WanConfig>().ffn_dim = 14336;
  config.in_channels = config.out_channels = 48;
  check("2.2 TI2V 5B", config, 825, 4999787712, 0xcc985bf3e1d3b617);
}

TEST_CASE("config.json is diffusers' own") {
  using nlohmann::json;
  for (const auto& config :
       {wan_t2v_config(), wan_variant_config(), wan_i2v_config(), wan_flf2v_config(), wan_ti2v_config()}) {
    const auto model = make_dit(config, full_attention(), 0, at::kCPU);
    const json expected =
        json::parse(vmoba::read_file(fmt::format("{}/config.json", config.weights), 1 << 20, "a configuration"));
    CHECK(json::parse(model->config_json()) == expected);
  }
}

TEST_CASE("FLOPs are those of the matrix products") {
  ModelConfig config = random_config();
  const Grid grid{3, 3, 4};  // S = 36; E = 40, F = 56, 16 patch values in and out, text 5 x 12, frequencies 16
  const double s = 36, e = 40, f = 56, l = 5;
  const double layer = 8 * s * e * e + 4 * s * s * e + 4 * s * e * e + 4 * l * e * e + 4 * s * l * e + 4 * s * e * f;
  const double outer = 2 * s * 16 * e * 2 + 2 * l * (12 * e + e * e) + 2 * (16 * e + e * e + 6 * e * e);
  CHECK(forward_flops(config, full_attention(), grid, 5, 1) == Approx(2 * layer + outer).epsilon(1e-12));
  // Temporal layer: 3 blocks; spatial layer: 2 x 2 blocks. Gate: 2*S*C*E each.
  const double saved = 2 * 4 * s * s * e * 0.5, gate = 2 * s * (3 + 4) * e;
  CHECK(forward_flops(config, small_vmoba(), grid, 5, 0.5) == Approx(2 * layer + outer - saved + gate).epsilon(1e-12));
  // 257 image tokens of width 7: two maps (7 -> 7 -> E), then keys, values and attention in every layer.
  config.image_dim = 7;
  config.task = "i2v";
  const double image = 257, image_flops = 2 * image * (7 * 7 + 7 * e) + 2 * (4 * image * e * e + 4 * s * image * e);
  CHECK(forward_flops(config, full_attention(), grid, 5, 1) == Approx(2 * layer + outer + image_flops).epsilon(1e-12));
}

TEST_CASE("wrong shapes are refused with the shape that works") {
  const auto model = make_dit(random_config(), full_attention(), 0, at::kCPU);
  CHECK(model->grid(3, 6, 8) == Grid{3, 3, 4});
  CHECK(contains(refusal_of([&] { model->grid(3, 7, 8); }), "multiple of 2 (model.patch_size), found 7; use 6 or 8"));
  CHECK(contains(refusal_of([&] { model->grid(3, 0, 8); }), "found 0"));
  CHECK(contains(refusal_of([&] { model->grid(1025, 2, 2); }), "at most 1024"));
  const at::Tensor latents = at::zeros({2, 4, 3, 6, 8}), timestep = at::zeros({2}), text = at::zeros({2, 5, 12});
  const auto forward = [&](DitInput input) { return refusal_of([&] { model->forward(input, {}); }); };
  CHECK(forward({latents, timestep, {{text}}}).empty());
  CHECK(contains(forward({at::zeros({2, 5, 3, 6, 8}), timestep, {{text}}}), "model.in_channels"));
  CHECK(contains(forward({latents, timestep, {{at::zeros({2, 5, 13})}}}), "model.text_dim"));
  CHECK(contains(forward({latents, timestep, {{at::zeros({1, 5, 12})}}}), "model.text_dim"));
  CHECK(contains(forward({latents, at::zeros({1}), {{text}}}), "2 timesteps"));
  CHECK(forward({latents, at::zeros({2, 3}), {{text}}}).empty());
  CHECK(contains(forward({latents, at::zeros({2, 7}), {{text}}}), "divisor of the 36 tokens"));
  CHECK(contains(forward({latents, timestep, {{text}, at::zeros({2, 7, 10})}}), "without model.image_dim"));
  CHECK(forward({latents, timestep, {{text, at::full({2}, 3, at::kLong)}}}).empty());
  CHECK(contains(forward({latents, timestep, {{text, {}, at::zeros({2, 6})}}}), "a pooled text as well"));
  CHECK(contains(forward({latents, timestep, {{text, {}, {}, at::zeros({2, 1, 6})}}}), "glyph tokens as well"));
  CHECK(contains(forward({latents, timestep, {{text}, {}, at::zeros({2})}}), "an embedded guidance scale"));
  const auto i2v = make_dit(wan_flf2v_config(), full_attention(), 0, at::kCPU);
  const auto refusal = [&](const at::Tensor& image) {
    return refusal_of([&] {
      i2v->forward({at::zeros({1, 10, 1, 2, 2}), at::zeros({1}), {{at::zeros({1, 5, 4})}, image}}, {});
    });
  };
  CHECK(refusal(at::zeros({1, 14, 10})).empty());
  CHECK(contains(refusal(at::Tensor()), "model.image_dim"));
  CHECK(contains(refusal(at::zeros({1, 7, 10})), "[1, 14, 10]"));
  ModelConfig config = random_config();
  config.head_dim = 21;
  CHECK(contains(refusal_of([&] { make_dit(config, full_attention(), 0, at::kCPU); }), "model.head_dim"));
  config = random_config();
  config.own<WanConfig>().image_pos_tokens = 14;
  CHECK(contains(refusal_of([&] { config.validate(); }), "model.image_pos_tokens"));
  config = random_config();
  config.own<WanConfig>().freq_dim = 15;
  CHECK(contains(refusal_of([&] { config.validate(); }), "model.freq_dim"));
  config = random_config();
  config.architecture = "wam";
  CHECK(contains(refusal_of([&] { config.validate(); }), "model.architecture (wan)"));
}

TEST_CASE("gradients of the norms do not depend on the number of threads") {
  const int before = at::get_num_threads();
  const at::Tensor x = at::linspace(-3, 5, 700 * 96, at::kFloat).sin().view({1, 700, 96});
  const auto gradients = [&](int threads) {
    at::set_num_threads(threads);
    std::vector<at::Tensor> leaves = {x.clone(), at::full({96}, 1.5), at::full({96}, 0.25), at::full({96}, 0.5)};
    for (at::Tensor& leaf : leaves) leaf.requires_grad_(true);
    const at::Tensor normed = rms_norm(layer_norm(leaves[0], leaves[1], leaves[2], 1e-6), leaves[3], 1e-6);
    normed.backward(x.cos());
    std::vector<at::Tensor> out = {normed.detach()};
    for (const at::Tensor& leaf : leaves) out.push_back(leaf.grad());
    return out;
  };
  const auto one = gradients(1);
  for (const int threads : {2, 3, 4}) {
    const auto other = gradients(threads);
    for (size_t i = 0; i < one.size(); ++i) CHECK(at::equal(one[i], other[i]));
  }
  at::set_num_threads(before);
}
