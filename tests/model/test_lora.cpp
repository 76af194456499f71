// LoRA against peft (scripts/make_lora_fixtures.py), its files in every format, and what is refused.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "model/adapter/lora.h"
#include "model/adapter/lora_file.h"
#include "model/wan_fixture.h"
#include "support/messages.h"
#include "support/process.h"

namespace {

namespace fs = std::filesystem;
using namespace vmoba::model;
using vmoba::test::contains;
using vmoba::test::refusal_of;

std::unique_ptr<Dit> base(const std::string& weights_dtype = "fp32") {
  ModelConfig config = wan_t2v_config();
  config.weights_dtype = weights_dtype;
  return make_dit(config, full_attention(), 0, at::kCPU);
}

std::vector<Adapter> peft_adapters() {
  return read_lora(fixture_path("lora"), wan_row(), at::kCPU);
}

struct Results {
  at::Tensor output;
  std::map<std::string, at::Tensor> gradients;
};

Results run(Dit& model, bool checkpointing) {
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  ForwardOptions options;
  options.recompute = every_block(wan_t2v_config(), {checkpointing});
  for (const Parameter& p : model.trainable()) p.tensor.mutable_grad() = at::Tensor();
  Results out;
  out.output =
      model.forward({fixture.tensor("latents"), fixture.tensor("timestep"), {{fixture.tensor("text")}}}, options);
  (out.output * fixture.tensor("cotangent")).sum().backward();
  for (const Parameter& p : model.trainable()) out.gradients[p.name] = p.tensor.grad();
  return out;
}

// The fixture's velocity without gradients.
at::Tensor velocity_of(Dit& model, bool adapters) {
  const at::NoGradGuard no_grad;
  const SafetensorsFile fixture(fixture_path("wan_t2v.safetensors"));
  ForwardOptions options;
  options.adapters = adapters;
  return model.forward({fixture.tensor("latents"), fixture.tensor("timestep"), {{fixture.tensor("text")}}}, options);
}

void check_same(const std::vector<Adapter>& found, const std::vector<Adapter>& expected) {
  REQUIRE(found.size() == expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    INFO(expected[i].module);
    CHECK(found[i].module == expected[i].module);
    const auto product = [](const LowRank& x) { return at::matmul(x.b, x.a) * x.scale; };
    // A scale folded into B rounds each of its fp32 values once.
    CHECK(relative_error(product(found[i].low_rank), product(expected[i].low_rank)) < 1e-6);
  }
}

LoraConfig rank_two() {
  LoraConfig config;
  config.rank = 2;
  return config;
}

}  // namespace

TEST_CASE("without its adapters a model is the base that they were attached to") {
  const std::unique_ptr<Dit> plain = base(), adapted = base();
  adapted->attach(peft_adapters());
  CHECK(at::equal(velocity_of(*adapted, false), velocity_of(*plain, true)));
  CHECK_FALSE(at::allclose(velocity_of(*adapted, true), velocity_of(*plain, true), 1e-3, 1e-3));
}

TEST_CASE("output and gradients of a LoRA are peft's, recomputed or not") {
  const SafetensorsFile expected(fixture_path("lora_expected.safetensors"));
  const auto model = base();
  model->attach(peft_adapters());
  for (const bool checkpointing : {false, true}) {
    const Results found = run(*model, checkpointing);
    CHECK(relative_error(found.output.detach(), expected.tensor("output")) < 1e-5);
    REQUIRE(found.gradients.size() + 1 == expected.tensors().size());
    for (const auto& [name, gradient] : found.gradients) {
      INFO(name);
      CHECK(relative_error(gradient, expected.tensor("grad." + name)) < 1e-5);
    }
  }
}

TEST_CASE("the base is frozen: no gradients, nothing of it to optimise") {
  const auto model = base();
  model->attach(peft_adapters());
  run(*model, true);
  for (const Parameter& p : model->parameters()) {
    INFO(p.name);
    CHECK_FALSE(p.tensor.requires_grad());
    CHECK_FALSE(p.tensor.grad().defined());
  }
  CHECK(model->trainable().size() == 2 * peft_adapters().size());
}

TEST_CASE("a new LoRA changes nothing, is a function of the seed, and covers the complete set") {
  const auto model = base();
  const auto adapters = make_adapters(rank_two(), wan_row(), model->parameters(), 3, at::kCPU);
  CHECK(adapters.size() == 2 * 10);  // q, k, v, o of two attentions and two maps of ffn in each of two blocks
  const at::Tensor before = run(*model, false).output.detach();
  model->attach(adapters);
  CHECK(run(*model, false).output.detach().equal(before));
  const auto again = make_adapters(rank_two(), wan_row(), base()->parameters(), 3, at::kCPU);
  const auto other = make_adapters(rank_two(), wan_row(), base()->parameters(), 4, at::kCPU);
  CHECK(again[5].low_rank.a.equal(adapters[5].low_rank.a));
  CHECK_FALSE(other[5].low_rank.a.equal(adapters[5].low_rank.a));
  CHECK(adapters[0].low_rank.a.abs().max().item<double>() <= 1 / std::sqrt(40.0));
}

TEST_CASE("targets are patterns in diffusers' or the original names") {
  const auto model = base();
  const auto count = [&](std::vector<std::string> patterns) {
    return lora_modules(patterns, wan_row(), model->parameters()).size();
  };
  CHECK(count({"to_q"}) == 4);
  CHECK(count({"self_attn.q"}) == 2);
  CHECK(count({"blocks.1.*"}) == 10);
  CHECK(count({"ffn.0", "ffn.net.0.proj"}) == 2);
  CHECK(count({"time_projection.1", "proj_out"}) == 2);
  CHECK(contains(refusal_of([&] { count({"to_q", "to_z"}); }), "'to_z'"));
  CHECK(contains(refusal_of([&] { count({"patch_embedding"}); }), "'patch_embedding'"));  // a convolution
}

TEST_CASE("every format written reads back to the same maps, in the names that tools expect") {
  const vmoba::test::TemporaryFolder folder;
  const std::vector<Adapter> adapters = peft_adapters();
  const std::map<std::string, std::string> first = {{"comfyui", "diffusion_model.blocks.0.self_attn.q.lora_A.weight"},
                                                    {"diffusers", "transformer.blocks.0.attn1.to_q.lora_A.weight"},
                                                    {"kohya", "lora_unet_blocks_0_self_attn_q.lora_down.weight"}};
  for (const std::string& format : lora_format_names()) {
    const std::string path = folder.path() + "/" + format + ".safetensors";
    write_lora(path, adapters, wan_row(), lora_format(format), at::kFloat);
    const SafetensorsFile file(path);
    CHECK(file.contains(first.at(format)));
    CHECK(file.contains("lora_unet_blocks_0_ffn_0.alpha") == (format == "kohya"));
    check_same(read_lora(path, wan_row(), at::kCPU), adapters);
  }
  CHECK(missing_for_kohya(adapters, wan_row()).empty());
  CHECK(missing_for_kohya({adapters[0]}, wan_row()).size() == 9);
}

TEST_CASE("files of other writers are read") {
  const vmoba::test::TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  const at::Tensor a = at::ones({2, 4}), b = at::ones({6, 2});
  const auto read_one = [&](const std::vector<NamedTensor>& tensors,
                            const std::map<std::string, std::string>& metadata = {}) {
    write_safetensors(path, tensors, metadata);
    const auto adapters = read_lora(path, wan_row(), at::kCPU);
    REQUIRE(adapters.size() == 1);
    return adapters[0];
  };
  const auto pair = [&](const std::string& a_name, const std::string& b_name) {
    return std::vector<NamedTensor>{{a_name, a}, {b_name, b}};
  };
  // DiffSynth: no prefix, an adapter's name. VideoX-Fun: two underscores.
  const Adapter diffsynth = read_one(
      pair("blocks.3.cross_attn.k_img.lora_A.default.weight", "blocks.3.cross_attn.k_img.lora_B.default.weight"));
  CHECK(diffsynth.module == "blocks.3.attn2.add_k_proj");
  CHECK(diffsynth.low_rank.scale == 1);
  auto videox = pair("lora_unet__blocks_12_ffn_2.lora_down.weight", "lora_unet__blocks_12_ffn_2.lora_up.weight");
  videox.push_back({"lora_unet__blocks_12_ffn_2.alpha", at::scalar_tensor(1.0)});
  CHECK(read_one(videox).module == "blocks.12.ffn.net.2");
  CHECK(read_one(videox).low_rank.scale == 0.5);
  // alpha in diffusers' metadata, and by module.
  const auto diffusers =
      pair("transformer.blocks.0.attn1.to_out.0.lora_A.weight", "transformer.blocks.0.attn1.to_out.0.lora_B.weight");
  CHECK(read_one(diffusers, {{"lora_adapter_metadata", R"({"transformer.lora_alpha": 8, "transformer.r": 2})"}})
            .low_rank.scale == 4);
  CHECK(read_one(diffusers, {{"lora_adapter_metadata",
                              R"({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn1.to_out.0": 3}})"}})
            .low_rank.scale == 1.5);
}

TEST_CASE("what is no such LoRA is refused by name") {
  const vmoba::test::TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  const auto refused = [&](const std::vector<NamedTensor>& tensors) {
    write_safetensors(path, tensors);
    return refusal_of([&] { read_lora(path, wan_row(), at::kCPU); });
  };
  const std::string module = "diffusion_model.blocks.0.self_attn.q";
  const at::Tensor a = at::zeros({2, 40}), b = at::zeros({40, 2});
  CHECK(contains(refused({{module + ".lora_A.weight", a}}), "A only"));
  CHECK(contains(refused({{module + ".lora_A.weight", a}, {module + ".lora_B.weight", at::zeros({40, 3})}}), "40x3"));
  CHECK(contains(refused({{module + ".lora_A.weight", a}, {module + ".lora_B.weight", b}, {module + ".diff_b", b}}),
                 "diff_b"));
  CHECK(contains(refused({{"diffusion_model.blocks.0.norm9.lora_A.weight", a}}), "norm9"));
  CHECK(contains(refused({{module + ".hada_w1_a", a}}), "hada_w1_a"));
  const auto model = base();
  CHECK(contains(refusal_of([&] { model->attach({{"blocks.7.attn1.to_q", {a, b, 1}}}); }), "blocks.7.attn1.to_q"));
  CHECK(contains(refusal_of([&] { model->attach({{"blocks.0.ffn.net.2", {a, b, 1}}}); }), "another model"));
}

TEST_CASE("a run goes on from a file of any format; what does not fit is said") {
  const vmoba::test::TemporaryFolder folder;
  const std::string path = folder.path() + "/x.safetensors";
  const std::vector<Adapter> stored = peft_adapters();
  write_lora(path, stored, wan_row(), LoraFormat::kKohya, at::kFloat);
  LoraConfig config;
  config.rank = 3;
  config.alpha = 6;
  config.init_from = path;
  const auto model = base();
  auto found = make_adapters(config, wan_row(), model->parameters(), 0, at::kCPU);
  CHECK(found[0].low_rank.scale == 2);
  std::sort(found.begin(), found.end(), [](const Adapter& x, const Adapter& y) { return x.module < y.module; });
  check_same(found, stored);
  config.rank = 4;
  CHECK(contains(refusal_of([&] { make_adapters(config, wan_row(), model->parameters(), 0, at::kCPU); }),
                 "found rank 3"));
  config.rank = 3;
  config.targets = {"to_q"};
  CHECK(contains(refusal_of([&] { make_adapters(config, wan_row(), model->parameters(), 0, at::kCPU); }),
                 "add it to the targets"));
}

TEST_CASE("adapters of one module add up, so that two LoRAs can be sampled with") {
  const auto once = base(), twice = base();
  std::vector<Adapter> halves = peft_adapters(), both = peft_adapters();
  for (Adapter& adapter : halves) adapter.low_rank.scale /= 2;
  both = halves;
  both.insert(both.end(), halves.begin(), halves.end());
  once->attach(peft_adapters());
  twice->attach(both);
  CHECK(relative_error(run(*twice, false).output.detach(), run(*once, false).output.detach()) < 1e-5);
}

TEST_CASE("a base kept in bf16 or fp8 trains its adapters") {
  const Results exact = [] {
    const auto model = base();
    model->attach(peft_adapters());
    return run(*model, true);
  }();
  for (const auto& [dtype, limit] : std::map<std::string, double>{{"bf16", 0.02}, {"fp8", 0.2}}) {
    INFO(dtype);
    const auto model = base(dtype);
    model->attach(peft_adapters());
    const Results found = run(*model, true);
    // A matrix entry is off by at most 2^-9 (bf16) or 2^-4 (e4m3) of itself; a sum of random signs stays near that.
    CHECK(relative_error(found.output.detach(), exact.output.detach()) < limit);
    CHECK(relative_error(found.output.detach(), exact.output.detach()) > 0);
    for (const auto& [name, gradient] : found.gradients) {
      REQUIRE(gradient.defined());
      CHECK(at::isfinite(gradient).all().item<bool>());
    }
  }
}
