// Small random HunyuanVideo transformers with diffusers' outputs and gradients; made by
// scripts/make_hunyuan_fixtures.py.
#pragma once
#include <map>
#include <set>
#include <string>

#include "model/hunyuan/hunyuan_config.h"
#include "model/wan_fixture.h"
#include "model/weights/stated_sizes.h"

namespace vmoba::model {

// The sizes are those of the files.
inline ModelConfig hunyuan_config(const std::string& name, const std::string& task = "t2v") {
  ModelConfig config;
  config.architecture = name.starts_with("hunyuan_15") ? kHunyuan15 : kHunyuan;
  config.task = task;
  config.weights = fixture_path(name);
  take_stated_sizes(config, config.weights, {});
  return config;
}

inline ModelConfig hunyuan_t2v_config() {
  return hunyuan_config("hunyuan_t2v");
}

inline SafetensorsFile hunyuan_tensors(const std::string& name) {
  return SafetensorsFile(fixture_path(name + ".safetensors"));
}

struct HunyuanInput {
  DitInput input;
  std::map<std::string, at::Tensor> leaves;  // by their names in the file
};

// Tensors with gradients as leaves in `dtype`.
inline HunyuanInput hunyuan_input(const SafetensorsFile& file, at::ScalarType dtype = at::kFloat) {
  HunyuanInput out;
  const auto leaf = [&](const char* name) {
    if (!file.contains(name)) return at::Tensor();
    return out.leaves[name] = file.tensor(name).to(dtype, false, /*copy=*/true).requires_grad_(true);
  };
  const auto given = [&](const char* name) { return file.contains(name) ? file.tensor(name) : at::Tensor(); };
  out.input.latents_BCTHW = leaf("latents");
  out.input.timestep_BG = file.tensor("timestep");
  out.input.conditions.text = {leaf("text"), given("length"), leaf("pooled"), leaf("glyphs"), given("glyph_length")};
  out.input.conditions.image_BIM = leaf("image");
  out.input.conditions.guidance_B = given("guidance");
  out.input.conditions.next_timestep_B = given("next_timestep");
  return out;
}

// Output, input gradients and parameter gradients of sum(output * cotangent), by the names of the fixture files.
inline std::map<std::string, at::Tensor> run_hunyuan(Dit& model, const SafetensorsFile& fixture,
                                                     const ForwardOptions& options) {
  const bool precise = options.compute_dtype == at::kDouble;
  const HunyuanInput made = hunyuan_input(fixture, precise ? at::kDouble : at::kFloat);
  for (const Parameter& parameter : model.parameters()) parameter.tensor.mutable_grad() = at::Tensor();
  const at::Tensor output = model.forward(made.input, options);
  (output * fixture.tensor("cotangent").to(output.scalar_type())).sum().backward();
  std::map<std::string, at::Tensor> results = {{"output", output.detach()}};
  for (const auto& [name, leaf] : made.leaves) results["grad.input." + name] = leaf.grad();
  for (const Parameter& parameter : model.parameters()) results["grad." + parameter.name] = parameter.tensor.grad();
  return results;
}

}  // namespace vmoba::model
