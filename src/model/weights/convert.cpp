#include "model/weights/convert.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <map>

#include "core/check.h"
#include "model/weights/lora_file.h"
#include "model/weights/transformer_config.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kComfyUiPrefix = "model.diffusion_model.";

at::ScalarType output_dtype(const std::string& name, at::ScalarType stored) {
  if (name == "keep") return c10::elementSize(stored) == 1 ? at::kBFloat16 : stored;
  return name == "fp32" ? at::kFloat : name == "fp16" ? at::kHalf : at::kBFloat16;
}

bool is_lora(const std::string& path) {
  if (!fs::exists(path)) return false;
  if (fs::is_directory(path)) {
    if (fs::exists(fs::path(path) / "adapter_model.safetensors")) return true;
    return fs::exists(fs::path(path) / "pytorch_lora_weights.safetensors");
  }
  if (!path.ends_with(".safetensors")) return false;
  std::vector<std::string> names;
  const SafetensorsFile file(path);
  for (const auto& [name, info] : file.tensors()) names.push_back(name);
  return detect_layout(names) == WeightLayout::kLora;
}

void check_out(const ConvertOptions& options, const std::string& in_folder) {
  const fs::path out = options.out;
  std::error_code error;
  const fs::path out_folder = out.extension() == ".safetensors" ? out.parent_path() : out;
  const bool same_file = fs::exists(out) && fs::equivalent(out, options.in, error);
  const bool same_folder =
      out.extension() != ".safetensors" && fs::exists(out_folder) && fs::equivalent(out_folder, in_folder, error);
  VMOBA_CHECK_INPUT(!same_file && !same_folder,
                    "expected another place for the result than '{}', found the input's own", options.out);
}

std::string convert_lora(const ConvertOptions& options) {
  VMOBA_CHECK_INPUT(options.loras.empty(), "expected a transformer to merge --lora into, found the LoRA file '{}'",
                    options.in);
  VMOBA_CHECK_INPUT(options.layout != "original",
                    "--layout: expected comfyui, diffusers or kohya for the LoRA file '{}', found original",
                    options.in);
  VMOBA_CHECK_INPUT(options.out.ends_with(".safetensors"), "expected the name of a .safetensors file, found '{}'",
                    options.out);
  std::vector<Adapter> adapters = read_lora(options.in, at::kCPU);
  for (Adapter& adapter : adapters) adapter.low_rank.scale *= options.lora_strength;
  const LoraFormat format = lora_format(options.layout);
  write_lora(options.out, adapters, format, output_dtype(options.dtype == "keep" ? "fp32" : options.dtype, at::kFloat));
  std::string words = fmt::format("{}: {} adapters, {}", options.out, adapters.size(), options.layout);
  const std::vector<std::string> missing = missing_for_kohya(adapters);
  if (format == LoraFormat::kKohya && !missing.empty())
    words += fmt::format("; diffusers refuses kohya files without all of q, k, v, o and ffn, {} are missing",
                         missing.size());
  return words;
}

// Adapters of all --lora files by the weight that they change.
using Deltas = std::map<std::string, std::vector<LowRank>>;

Deltas read_deltas(const ConvertOptions& options, const WeightFiles& files) {
  Deltas deltas;
  for (const std::string& path : options.loras) {
    for (Adapter& adapter : read_lora(path, at::kCPU)) {
      const std::string name = adapter.module + ".weight";
      VMOBA_CHECK_INPUT(files.entries().contains(name), "--lora: expected modules of '{}', found '{}' in '{}'",
                        options.in, adapter.module, path);
      const std::vector<int64_t>& shape = files.info(name).shape;
      VMOBA_CHECK_INPUT(
          shape.size() == 2 && adapter.low_rank.b.size(0) == shape[0] && adapter.low_rank.a.size(1) == shape[1],
          "--lora: expected '{}' in '{}' to fit the weight of '{}', found another size; the file belongs "
          "to another model",
          adapter.module, path, options.in);
      adapter.low_rank.scale *= options.lora_strength;
      deltas[name].push_back(std::move(adapter.low_rank));
    }
  }
  return deltas;
}

std::string output_name(const std::string& name, const std::string& layout) {
  if (layout == "diffusers") return name;
  const std::string original = diffusers_to_original(name).value();
  return layout == "comfyui" ? kComfyUiPrefix + original : original;
}

std::vector<TensorToWrite> converted_tensors(const ConvertOptions& options, const WeightFiles& files,
                                             const Deltas& deltas) {
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, entry] : files.entries()) {
    const TensorInfo& info = files.info(name);
    VMOBA_CHECK_INPUT(diffusers_to_original(name) && at::isFloatingType(info.dtype),
                      "expected only a Wan transformer's tensors in '{}' ({} layout), found '{}' ({})", options.in,
                      layout_name(files.layout()), entry.stored_name, c10::toString(info.dtype));
    const at::ScalarType dtype = output_dtype(options.dtype, info.dtype);
    const auto read = [&files, &deltas, name = name, dtype] {
      const auto found = deltas.find(name);
      if (found == deltas.end()) return files.read(name, dtype, at::kCPU);
      at::Tensor weight = files.read(name, at::kFloat, at::kCPU);
      for (const LowRank& delta : found->second) weight.addmm_(delta.b, delta.a, 1, delta.scale);
      return weight.to(dtype);
    };
    tensors.push_back({output_name(name, options.layout), dtype, info.shape, read});
  }
  return tensors;
}

std::string convert_transformer(const ConvertOptions& options) {
  VMOBA_CHECK_INPUT(options.layout != "kohya",
                    "--layout: expected diffusers, original or comfyui for the transformer "
                    "'{}', found kohya, which is for LoRA files",
                    options.in);
  const bool file = options.out.ends_with(".safetensors");
  VMOBA_CHECK_INPUT(file || options.layout != "comfyui",
                    "expected the name of a .safetensors file for ComfyUI, found '{}'", options.out);
  const WeightFiles files(options.in);
  check_out(options, files.folder());
  const Deltas deltas = read_deltas(options, files);
  const std::vector<TensorToWrite> tensors = converted_tensors(options, files, deltas);
  const nlohmann::json config = transformer_config_of(files, options.head_dim);
  if (file) {
    save_tensors(options.out, tensors, {{"format", "pt"}});
  } else {
    const nlohmann::json out = options.layout == "original" ? original_config(config) : config;
    save_transformer(options.out, out.dump(2) + "\n", tensors, options.shard_bytes);
  }
  const fs::path second = fs::path(options.in) / "transformer_2";
  return fmt::format(
      "{}: {} tensors, {} layout from {}{}{}", options.out, tensors.size(), options.layout, layout_name(files.layout()),
      deltas.empty() ? "" : fmt::format(", {} weights changed by LoRA", deltas.size()),
      fs::is_directory(second) ? "; convert the expert of low noise, " + second.string() + ", as well" : "");
}

}  // namespace

std::string convert_weights(const ConvertOptions& options) {
  const at::NoGradGuard no_grad;
  return is_lora(options.in) ? convert_lora(options) : convert_transformer(options);
}

}  // namespace vmoba::model
