#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/random.h"
#include "model/hunyuan/hunyuan_parameters.h"
#include "model/hunyuan_fixture.h"
#include "support/messages.h"

namespace {

using namespace vmoba::model;
using vmoba::attention::AttentionStats;
using vmoba::test::contains;
using vmoba::test::refusal_of;

// Parameters of the refiner whose gradient is 0, because no softmax sees them: its key bias, and with a single text
// token, whose attention is 1, queries and keys. What is computed there is rounding, on both sides.
bool is_unseen(const std::string& key, bool single_token) {
  if (!contains(key, "refiner_blocks")) return false;
  return key.ends_with("attn.to_k.bias") ||
         (single_token && (contains(key, "attn.to_q.") || contains(key, "attn.to_k.")));
}

void check_parity(const ModelConfig& config, const std::string& name) {
  const SafetensorsFile fixture = hunyuan_tensors(name);
  const auto model = make_dit(config, full_attention(), 0, at::kCPU);
  const auto results = run_hunyuan(*model, fixture, {});
  const bool single_token = fixture.tensor("length").max().item<int64_t>() == 1;
  size_t compared = 0;
  for (const auto& [key, info] : fixture.tensors()) {
    if (key != "output" && !key.starts_with("grad.")) continue;
    INFO(name << " " << key);
    REQUIRE(results.contains(key));
    REQUIRE(results.at(key).defined());
    ++compared;
    const at::Tensor expected = fixture.tensor(key), found = results.at(key);
    if (is_unseen(key, single_token)) {
      const std::string seen = key.substr(0, key.find("attn.to_")) + "attn.to_v.weight";
      CHECK(found.abs().max().item<double>() <= 1e-5 * fixture.tensor(seen).abs().max().item<double>());
    } else if (expected.eq(0).all().item<bool>()) {
      CHECK(found.eq(0).all().item<bool>());
    } else {
      CHECK(relative_error(found, expected) <= 1e-5);
    }
  }
  CHECK(results.size() == compared);
}

vmoba::attention::AttentionConfig everything() {
  vmoba::attention::AttentionConfig config = small_vmoba();
  config.part<vmoba::attention::VmobaConfig>().tau = 1;
  return config;
}

const std::pair<const char*, const char*> kAll[] = {{"hunyuan_t2v", "t2v"},        {"hunyuan_variant", "t2v"},
                                                    {"hunyuan_replace", "i2v"},    {"hunyuan_concat", "i2v"},
                                                    {"hunyuan_15_t2v", "t2v"},     {"hunyuan_15_i2v", "i2v"},
                                                    {"hunyuan_15_variant", "t2v"}, {"hunyuan_15_meanflow", "i2v"}};

}  // namespace

TEST_CASE("outputs and all gradients agree with diffusers' HunyuanVideoTransformer3DModel, 1.0 and 1.5") {
  for (const auto& [name, task] : kAll) check_parity(hunyuan_config(name, task), name);
}

TEST_CASE("samples with texts of unequal lengths are what they are alone, HunyuanVideo") {
  for (const char* name : {"hunyuan_t2v", "hunyuan_15_i2v"}) {
    const SafetensorsFile fixture = hunyuan_tensors(name);
    const auto model =
        make_dit(hunyuan_config(name, name == std::string("hunyuan_t2v") ? "t2v" : "i2v"), small_vmoba(), 0, at::kCPU);
    const DitInput both = hunyuan_input(fixture).input;
    const at::Tensor together = model->forward(both, {}).detach();
    for (int64_t b = 0; b < 2; ++b) {
      DitInput alone{both.latents_BCTHW.narrow(0, b, 1), both.timestep_BG.narrow(0, b, 1),
                     narrow_samples(both.conditions, b, 1)};
      INFO(name << " sample " << b);
      CHECK(relative_error(model->forward(alone, {}).detach(), together.narrow(0, b, 1)) <= 1e-6);
      // Not only masked: what stands behind the text is not even there.
      TextEmbedding& text = alone.conditions.text;
      text.tokens_BLE = text.tokens_BLE.narrow(1, 0, text.length_B.item<int64_t>());
      text.length_B = at::Tensor();
      CHECK(relative_error(model->forward(alone, {}).detach(), together.narrow(0, b, 1)) <= 1e-6);
    }
    DitInput noisy = both;
    noisy.conditions.text.tokens_BLE = both.conditions.text.tokens_BLE.detach().clone();
    noisy.conditions.text.tokens_BLE[1].narrow(0, 6, 1).fill_(50);
    if (name == std::string("hunyuan_t2v")) noisy.conditions.text.tokens_BLE[1].narrow(0, 3, 4).fill_(50);
    CHECK(model->forward(noisy, {}).detach().equal(together));
  }
}

TEST_CASE("a batch of samples with and without an image is what they are alone, HunyuanVideo 1.5") {
  const SafetensorsFile fixture = hunyuan_tensors("hunyuan_15_i2v");
  const auto model = make_dit(hunyuan_config("hunyuan_15_i2v", "ti2v"), small_vmoba(), 0, at::kCPU);
  DitInput both = hunyuan_input(fixture).input;
  both.conditions.image_length_B = at::tensor({4, 0}, at::kLong);
  const at::Tensor together = model->forward(both, {}).detach();
  DitInput second{both.latents_BCTHW.narrow(0, 1, 1), both.timestep_BG.narrow(0, 1, 1),
                  narrow_samples(both.conditions, 1, 1)};
  second.conditions.image_BIM = second.conditions.image_length_B = at::Tensor();
  CHECK(relative_error(model->forward(second, {}).detach(), together.narrow(0, 1, 1)) <= 1e-6);
  second.conditions.text.glyphs_BJU = second.conditions.text.glyph_length_B = at::Tensor();  // it has none
  CHECK(relative_error(model->forward(second, {}).detach(), together.narrow(0, 1, 1)) <= 1e-6);
  both.conditions.image_length_B = at::Tensor();
  CHECK(relative_error(model->forward(both, {}).detach().narrow(0, 1, 1), together.narrow(0, 1, 1)) > 1e-3);
}

TEST_CASE("text to video without the channels of a condition equals zeros there, HunyuanVideo 1.5") {
  const SafetensorsFile fixture = hunyuan_tensors("hunyuan_15_t2v");
  const auto model = make_dit(hunyuan_config("hunyuan_15_t2v"), full_attention(), 0, at::kCPU);
  DitInput input = hunyuan_input(fixture).input;
  input.latents_BCTHW = input.latents_BCTHW.detach().clone();
  input.latents_BCTHW.narrow(1, 4, 5).zero_();
  const at::Tensor whole = model->forward(input, {}).detach();
  input.latents_BCTHW = input.latents_BCTHW.narrow(1, 0, 4);
  CHECK(model->forward(input, {}).detach().equal(whole));
  const auto i2v = make_dit(hunyuan_config("hunyuan_15_t2v", "i2v"), full_attention(), 0, at::kCPU);
  CHECK(contains(refusal_of([&] { i2v->forward(input, {}); }), "model.in_channels"));
}

TEST_CASE("step-distilled weights of HunyuanVideo 1.5 are told where a step leads to") {
  const SafetensorsFile fixture = hunyuan_tensors("hunyuan_15_meanflow");
  const ModelConfig config = hunyuan_config("hunyuan_15_meanflow", "i2v");
  CHECK(takes_next_timestep(config));
  CHECK_FALSE(takes_next_timestep(hunyuan_config("hunyuan_15_i2v", "i2v")));
  const auto model = make_dit(config, small_vmoba(), 0, at::kCPU);
  DitInput both = hunyuan_input(fixture).input;
  const at::Tensor together = model->forward(both, {}).detach();
  for (int64_t b = 0; b < 2; ++b) {
    const DitInput alone{both.latents_BCTHW.narrow(0, b, 1), both.timestep_BG.narrow(0, b, 1),
                         narrow_samples(both.conditions, b, 1)};
    CHECK(relative_error(model->forward(alone, {}).detach(), together.narrow(0, b, 1)) <= 1e-6);
  }
  DitInput runs = both;  // a timestep for each latent frame, all the same
  runs.timestep_BG = both.timestep_BG.unsqueeze(1).expand({2, 3});
  CHECK(relative_error(model->forward(runs, {}).detach(), together) <= 1e-6);
  both.conditions.next_timestep_B = at::tensor({900.0, 0.0}, at::kFloat);
  const at::Tensor other = model->forward(both, {}).detach();
  CHECK(relative_error(other.narrow(0, 0, 1), together.narrow(0, 0, 1)) > 1e-4);
  CHECK(relative_error(other.narrow(0, 1, 1), together.narrow(0, 1, 1)) <= 1e-6);
  both.conditions.next_timestep_B = at::Tensor();
  CHECK(contains(refusal_of([&] { model->forward(both, {}); }), "2 next timesteps (model.meanflow)"));
}

TEST_CASE("activation checkpointing changes no bit of HunyuanVideo, whatever is kept") {
  for (const auto& [name, task] : kAll) {
    const ModelConfig config = hunyuan_config(name, task);
    const SafetensorsFile fixture = hunyuan_tensors(name);
    std::vector<RecomputePolicy> policies = {{true}, {true, {"attn"}}, {true, {"attn", "attn.to_q", "proj_mlp"}}};
    policies.push_back({true, {"attn.add_k_proj", "ff.net.2", "ff_context.net.0.proj", "proj_out", "attn.to_out.0"}});
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const auto model = make_dit(config, small_vmoba(), 0, at::kCPU);
      AttentionStats plain_stats;
      const auto plain = run_hunyuan(*model, fixture, {dtype, false, {}, &plain_stats});
      for (const RecomputePolicy& policy : policies) {
        AttentionStats stats;
        const RecomputePlan plan(std::vector<RecomputePolicy>(size_t(layer_count(config)), policy));
        const auto again = run_hunyuan(*model, fixture, {dtype, false, plan, &stats});
        for (const auto& [key, value] : plain) {
          INFO(name << " " << c10::toString(dtype) << " " << key);
          CHECK(again.at(key).equal(value));
        }
        CHECK(plain_stats.densities() == stats.densities());
      }
    }
  }
}

TEST_CASE("VMoBA of HunyuanVideo: everything selected is full attention, and its layers go on through single blocks") {
  const SafetensorsFile fixture = hunyuan_tensors("hunyuan_t2v");
  const ModelConfig config = hunyuan_t2v_config();
  REQUIRE(layer_count(config) == 5);
  const auto output = [&](const vmoba::attention::AttentionConfig& attention, const ForwardOptions& options) {
    return run_hunyuan(*make_dit(config, attention, 0, at::kCPU), fixture, options).at("output");
  };
  const at::Tensor expected = output(full_attention(), {});
  CHECK(relative_error(output(everything(), {}), expected) <= 1e-5);
  CHECK(relative_error(output(small_vmoba(), {}), expected) > 1e-3);
  CHECK(output(small_vmoba(), {at::kFloat, /*dense=*/true}).equal(expected));
  // 1D, 2D, 3D, and the first single block, layer 2, is the 3D one.
  const auto model = make_dit(config, small_vmoba(), 0, at::kCPU);
  CHECK(model->layers() == 5);
  for (int64_t i = 0; i < 5; ++i) CHECK(model->layer(i, false).partition == vmoba::attention::Partition(i % 3));
  AttentionStats stats;
  run_hunyuan(*model, fixture, {at::kFloat, false, {}, &stats});
  std::set<int64_t> layers;
  for (const auto& [place, pairs] : stats.sums().by_head) layers.insert(place.first);
  CHECK(layers == std::set<int64_t>{0, 1, 2, 3, 4});
}

TEST_CASE("gradients of HunyuanVideo in fp64 agree with central differences, through VMoBA with text") {
  const SafetensorsFile fixture = hunyuan_tensors("hunyuan_t2v");
  const auto model = make_dit(hunyuan_t2v_config(), small_vmoba(), 0, at::kCPU);
  const at::Tensor cotangent = fixture.tensor("cotangent").to(at::kDouble);
  const ForwardOptions options{at::kDouble, false, recompute_plan(hunyuan_t2v_config()), nullptr};
  HunyuanInput made = hunyuan_input(fixture, at::kDouble);
  const auto loss = [&](const at::Tensor& latents, const at::Tensor& text) {
    DitInput input = made.input;
    input.latents_BCTHW = latents;
    input.conditions.text.tokens_BLE = text;
    return (model->forward(input, options) * cotangent).sum();
  };
  const at::Tensor latents = made.leaves.at("latents"), text = made.leaves.at("text");
  loss(latents, text).backward();
  const auto direction_like = [](const at::Tensor& x, uint64_t number) {
    std::vector<float> normals(size_t(x.numel()));
    vmoba::fill_normal(3, "direction", number, normals.data(), x.numel());
    return at::from_blob(normals.data(), x.sizes(), at::kFloat).to(at::kDouble);
  };
  const at::Tensor of_latents = direction_like(latents, 0), of_text = direction_like(text, 1);
  const double expected = ((latents.grad() * of_latents).sum() + (text.grad() * of_text).sum()).item<double>();
  const double step = 1e-6;  // truncation step^2, rounding 1e-16/step: both near 1e-10
  const at::NoGradGuard no_gradients;
  const double found = (loss(latents + step * of_latents, text + step * of_text) -
                        loss(latents - step * of_latents, text - step * of_text))
                           .item<double>() /
                       (2 * step);
  CHECK(found == Approx(expected).epsilon(1e-6));
}

TEST_CASE("bf16 stays near fp32, HunyuanVideo, and rounds a thousand times the guidance") {
  const SafetensorsFile fixture = hunyuan_tensors("hunyuan_t2v");
  const auto model = make_dit(hunyuan_t2v_config(), full_attention(), 0, at::kCPU);
  const at::Tensor coarse = run_hunyuan(*model, fixture, {at::kBFloat16}).at("output");
  CHECK(coarse.scalar_type() == at::kFloat);
  DitInput input = hunyuan_input(fixture).input;
  input.conditions.guidance_B = at::tensor({6.016, 1.0}, at::kFloat);
  const at::Tensor expected = model->forward(input, {}).detach();
  // As for Wan, in five blocks.
  const double error = relative_error(coarse, expected);
  CHECK(error <= 10 * std::ldexp(1.0, -9) * 5);
  CHECK(error > 1e-5);
}

TEST_CASE("published sizes of HunyuanVideo: every name and shape") {
  const auto published =
      nlohmann::json::parse(vmoba::read_file(fixture_path("hunyuan_shapes.json"), 1 << 20, "shapes"));
  for (const char* name : {kHunyuan, kHunyuan15}) {
    const auto& expected = published[name];
    ModelConfig config;
    config.architecture = name;
    const bool first = name == std::string(kHunyuan);
    config.layers = expected["blocks"][0];
    config.heads = first ? 24 : 16;
    config.in_channels = first ? 16 : 65;
    config.out_channels = first ? 16 : 32;
    config.text_dim = first ? 4096 : 3584;
    config.image_dim = first ? 0 : 1152;
    config.patch_size = first ? std::vector<int64_t>{1, 2, 2} : std::vector<int64_t>{1, 1, 1};
    const std::vector<ParameterSpec> specs = hunyuan_parameter_specs(config);
    CHECK(specs.size() == expected["tensors"].get<size_t>());
    CHECK(specs.size() == (first ? 1264 : 1801));
    CHECK(parameter_count(config) == expected["values"].get<int64_t>());
    CHECK(layer_count(config) == (first ? 60 : 54));
    size_t found = 0;
    for (const ParameterSpec& spec : specs) {
      if (!expected["shapes"].contains(spec.name)) continue;
      INFO(spec.name);
      CHECK(spec.shape == expected["shapes"][spec.name].get<std::vector<int64_t>>());
      ++found;
    }
    CHECK(found == expected["shapes"].size());
  }
}

TEST_CASE("work of the published HunyuanVideos, forward, as counted from their shapes") {
  // PFLOP of maps and attention of 129x720x1280 with 256 text tokens, and of 1.5 with 121x720x1280 and 300.
  ModelConfig config;
  config.architecture = kHunyuan;
  config.layers = 20;
  config.heads = 24;
  const double first = forward_flops(config, full_attention(), {33, 45, 80}, 256, 1);
  CHECK(first == Approx(1.62e15 + 10.45e15).epsilon(0.003));
  config = ModelConfig();
  config.architecture = kHunyuan15;
  config.layers = 54;
  config.heads = 16;
  config.in_channels = 65;
  config.out_channels = 32;
  config.text_dim = 3584;
  config.image_dim = 1152;
  config.patch_size = {1, 1, 1};
  CHECK(forward_flops(config, full_attention(), {31, 45, 80}, 300, 1) == Approx(0.61e15 + 5.54e15).epsilon(0.005));
  // What a block can keep is named as its maps, attention once.
  std::map<std::string, int64_t> kept;
  for (const ForwardWork& work : forward_work(config, full_attention(), {1, 2, 2}, 3, 1))
    if (work.result.starts_with("transformer_blocks.7.")) ++kept[work.result.substr(21)];
  CHECK(kept.size() == 13);
  CHECK(kept["attn"] == 1);
  CHECK(kept["attn.to_add_out"] == 1);
}

TEST_CASE("wrong conditions of HunyuanVideo are refused with what fits") {
  const SafetensorsFile fixture = hunyuan_tensors("hunyuan_t2v");
  const auto model = make_dit(hunyuan_t2v_config(), full_attention(), 0, at::kCPU);
  const DitInput good = hunyuan_input(fixture).input;
  const auto refusal = [&](const auto& change) {
    DitInput input = good;
    change(input.conditions);
    return refusal_of([&] { model->forward(input, {}); });
  };
  CHECK(refusal([](Conditions&) {}).empty());
  CHECK(contains(refusal([](Conditions& c) { c.text.pooled_BP = at::Tensor(); }), "expected a pooled text"));
  CHECK(contains(refusal([](Conditions& c) { c.text.pooled_BP = at::zeros({2, 7}); }), "model.pooled_dim"));
  CHECK(contains(refusal([](Conditions& c) { c.guidance_B = at::Tensor(); }), "2 guidance scales"));
  CHECK(contains(refusal([](Conditions& c) { c.next_timestep_B = at::zeros({2}); }), "no next timestep"));
  CHECK(contains(refusal([](Conditions& c) { c.text.length_B = at::tensor({8, 1}, at::kLong); }), "of 1 to 7"));
  CHECK(contains(refusal([](Conditions& c) { c.text.length_B = at::tensor({7, 0}, at::kLong); }), "of 1 to 7"));
  CHECK(contains(refusal([](Conditions& c) { c.text.glyphs_BJU = at::zeros({2, 1, 3}); }), "glyph tokens as well"));
  CHECK(contains(refusal([](Conditions& c) { c.image_BIM = at::zeros({2, 1, 3}); }), "image tokens as well"));
  CHECK(contains(refusal([](Conditions& c) { c.text.tokens_BLE = at::zeros({2, 7, 5}); }), "model.text_dim"));
  ModelConfig config = hunyuan_t2v_config();
  config.own<HunyuanConfig>().rope_axes = {4, 4, 4};
  CHECK(contains(refusal_of([&] { config.validate(); }), "model.rope_axes"));
  config = hunyuan_t2v_config();
  config.task = "i2v";
  CHECK(contains(refusal_of([&] { config.validate(); }), "model.image_condition"));
  config.task = "flf2v";
  CHECK(contains(refusal_of([&] { config.validate(); }), "model.task"));
}
