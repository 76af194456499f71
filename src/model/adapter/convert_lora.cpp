#include "model/adapter/convert_lora.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "model/adapter/lora_file.h"

namespace vmoba::model {

std::string convert_lora(const std::string& in, const std::string& out, const std::string& format, double strength,
                         at::ScalarType dtype) {
  VMOBA_CHECK_INPUT(format != "original",
                    "--layout: expected comfyui, diffusers or kohya for the LoRA file '{}', found original", in);
  VMOBA_CHECK_INPUT(out.ends_with(".safetensors"), "expected the name of a .safetensors file, found '{}'", out);
  const Architecture& architecture = architecture_of_lora(in);
  std::vector<Adapter> adapters = read_lora(in, architecture, at::kCPU);
  for (Adapter& adapter : adapters) adapter.low_rank.scale *= strength;
  const LoraFormat written = lora_format(format);
  write_lora(out, adapters, architecture, written, dtype);
  std::string words = fmt::format("{}: {} adapters, {}", out, adapters.size(), format);
  const std::vector<std::string> missing = missing_for_kohya(adapters, architecture);
  if (written == LoraFormat::kKohya && !missing.empty())
    words += fmt::format("; diffusers refuses kohya files that lack a module of a block, {} are missing (first {})",
                         missing.size(), missing.front());
  return words;
}

Deltas read_deltas(const std::vector<std::string>& paths, double strength, const Architecture& architecture,
                   const WeightFiles& files, const std::string& transformer) {
  Deltas deltas;
  for (const std::string& path : paths) {
    for (Adapter& adapter : read_lora(path, architecture, at::kCPU)) {
      const std::string name = adapter.module + ".weight";
      VMOBA_CHECK_INPUT(files.entries().contains(name), "--lora: expected modules of '{}', found '{}' in '{}'",
                        transformer, adapter.module, path);
      const std::vector<int64_t>& shape = files.info(name).shape;
      VMOBA_CHECK_INPUT(
          shape.size() == 2 && adapter.low_rank.b.size(0) == shape[0] && adapter.low_rank.a.size(1) == shape[1],
          "--lora: expected '{}' in '{}' to fit the weight of '{}', found another size; the file belongs "
          "to another model",
          adapter.module, path, transformer);
      adapter.low_rank.scale *= strength;
      deltas[name].push_back(std::move(adapter.low_rank));
    }
  }
  return deltas;
}

void add_deltas(const std::vector<LowRank>& deltas, at::Tensor& weight) {
  for (const LowRank& delta : deltas) weight.addmm_(delta.b, delta.a, 1, delta.scale);
}

}  // namespace vmoba::model
