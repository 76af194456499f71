#include "model/adapter/convert_lora.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace vmoba::model {

std::string convert_lora(const LoraSource& in, const std::string& out, const std::string& format, double strength,
                         at::ScalarType dtype, const std::string& architecture_name) {
  VMOBA_CHECK_INPUT(format != "original",
                    "--layout: expected comfyui, diffusers or kohya for the LoRA file '{}', found original", in.path);
  VMOBA_CHECK_INPUT(out.ends_with(".safetensors"), "expected the name of a .safetensors file, found '{}'", out);
  const Architecture& architecture = architecture_of_lora(in.path, architecture_name);
  std::vector<Adapter> adapters = read_lora(in, architecture, at::kCPU);
  for (Adapter& adapter : adapters) adapter.low_rank.scale *= strength;
  const LoraFormat written = lora_format(format);
  write_lora(out, adapters, architecture, written, dtype);
  std::string words = fmt::format("{}: {} adapters, {}", out, adapters.size(), format);
  const std::vector<std::string> missing = missing_for_kohya(adapters, architecture);
  if (written == LoraFormat::kKohya && !missing.empty())
    words += fmt::format("; diffusers refuses kohya files that lack a module of a block, {} are missing (first {})",
                         missing.size(), missing.front());
  if (const std::string mark = missing_for_diffusers(adapters, architecture);
      written == LoraFormat::kComfyUi && !mark.empty())
    words += fmt::format("; diffusers does not read it, because no name has '{}'; it reads the format diffusers", mark);
  return words;
}

Deltas read_deltas(const std::vector<std::string>& loras, double strength, const Architecture& architecture,
                   const WeightFiles& files, const std::string& transformer) {
  const ShapeOf shape_of = [&](const std::string& name) {
    return files.entries().contains(name) ? &files.info(name).shape : nullptr;
  };
  Deltas deltas;
  for (const std::string& lora : loras) {
    const LoraSource source = lora_source(lora);
    add_deltas(read_changes(source, architecture, at::kCPU), strength, source.path, shape_of, transformer, deltas);
  }
  return deltas;
}

}  // namespace vmoba::model
