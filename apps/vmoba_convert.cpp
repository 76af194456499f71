// vmoba-convert: transformers and LoRA files from any layout into any other; merges LoRAs (docs/pretrained.md).
#include <unistd.h>

#include <filesystem>
#include <iostream>

#include "apps/main_guard.h"
#include "core/folder_lock.h"
#include "model/convert.h"

namespace {

// Beside the output, which is replaced as a whole; inside a folder that is a mount of its own, for example.
std::string lock_path(const std::string& out) {
  std::filesystem::path path = std::filesystem::weakly_canonical(out);
  if (!path.has_filename()) path = path.parent_path();
  std::error_code failed;  // the lock then says so
  std::filesystem::create_directories(path.parent_path(), failed);
  const bool inside = ::access(path.parent_path().c_str(), W_OK) != 0 && std::filesystem::is_directory(path);
  return path.string() + (inside ? "/convert.lock" : ".lock");
}

}  // namespace

int main(int argc, char** argv) {
  using namespace vmoba;
  CLI::App app{"Converts the weights of a transformer, or a LoRA file, from any layout into another."};
  model::ConvertOptions a;
  double shard_gb = double(a.shard_bytes) / 1e9;
  app.add_option("in", a.in, "Transformer (folder, index or file, any layout, fp8 too) or LoRA file")->required();
  app.add_option("out", a.out, "Folder or .safetensors file to write")->required();
  app.add_option("--layout", a.layout, "Layout to write; kohya for LoRA files only")
      ->required()
      ->check(CLI::IsMember({"diffusers", "original", "comfyui", "kohya"}));
  app.add_option("--dtype", a.dtype, "Type to write; keep turns fp8 into bf16, LoRA files into fp32")
      ->check(CLI::IsMember({"keep", "fp32", "bf16", "fp16"}));
  app.add_option("--shard-gb", shard_gb, "Largest file of a folder in GB (10)")->check(CLI::Range(1e-6, 1e9));
  app.add_option("--head-dim", a.head_dim, "Size of an attention head where no config.json tells (128)");
  app.add_option("--architecture", a.architecture, "Of a LoRA file whose names several kinds of transformers have");
  app.add_option("--lora", a.loras,
                 "LoRA file to merge into the transformer; may be repeated. N:FILE takes the tensors of transformer N "
                 "from a file of two")
      ->allow_extra_args(false);
  app.add_option("--lora-strength", a.lora_strength, "Factor of the LoRA (1)");
  return apps::guarded_main(app, argc, argv, [&] {
    a.shard_bytes = int64_t(shard_gb * 1e9);
    const FolderLock lock(lock_path(a.out), fmt::format("output '{}'", a.out), "choose another output");
    std::cout << model::convert_weights(a) << "\n";
    return 0;
  });
}
