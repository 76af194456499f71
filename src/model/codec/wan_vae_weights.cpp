#include "model/codec/wan_vae_weights.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <filesystem>

#include "core/check.h"
#include "model/codec/wan_vae_names.h"
#include "model/codec/wan_vae_network.h"
#include "model/weights/model_folder.h"
#include "model/weights/tensor_mismatch.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolderFile = "diffusion_pytorch_model.safetensors";
constexpr const char* kWhereFrom =
    "get the folder vae/ of Wan-AI/Wan2.1-T2V-1.3B-Diffusers (any Wan2.1 or Wan2.2 A14B) or of "
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers on Hugging Face, or wan_2.1_vae.safetensors or wan2.2_vae.safetensors from "
    "Comfy-Org, and set codec.weights";

std::string find_file(const std::string& path) {
  VMOBA_CHECK_INPUT(!path.empty(),
                    "codec.weights: expected the weights of a VAE for codec.type wan_vae, found "
                    "nothing; {}",
                    kWhereFrom);
  VMOBA_CHECK_INPUT(fs::exists(path), "codec.weights: expected the weights of a VAE at '{}', found nothing; {}", path,
                    kWhereFrom);
  const std::string place = model_folder(path, "vae", "codec.weights");
  if (!fs::is_directory(place)) return place;
  const fs::path file = fs::path(place) / kFolderFile;
  VMOBA_CHECK_INPUT(fs::exists(file), "codec.weights: expected {} in '{}' or its vae/ folder, found neither; {}",
                    kFolderFile, path, kWhereFrom);
  return file.string();
}

}  // namespace

WanVaeWeights::WanVaeWeights(const std::string& path) : path_(find_file(path)), file_(path_) {
  for (const auto& [name, info] : file_.tensors()) {
    VMOBA_CHECK_INPUT(stored_.emplace(wan_vae_name(name), name).second,
                      "expected each tensor once in '{}' (codec.weights), found '{}' under two names", path_, name);
  }
  const fs::path config_file = fs::path(path_).parent_path() / "config.json";
  // A single file may lie in a folder of other models: only diffusers' own file name goes with a config.json.
  if (fs::path(path_).filename() == kFolderFile && fs::exists(config_file)) {
    config_ = read_wan_vae_config(config_file.string());
  } else {
    const ShapeOf shape_of = [&](const std::string& name) {
      const auto found = stored_.find(name);
      return found == stored_.end() ? std::vector<int64_t>{} : file_.tensors().at(found->second).shape;
    };
    config_ = deduce_wan_vae_config(shape_of, path_);
  }
  check_tensors();
}

void WanVaeWeights::check_tensors() const {
  std::map<std::string, std::string> rest = stored_;
  TensorMismatch mismatch;
  for (const ParameterSpec& spec : wan_vae_specs(config_)) {
    const auto found = rest.find(spec.name);
    if (found == rest.end()) {
      mismatch.missing.push_back(fmt::format("{} {}", spec.name, fmt::join(spec.shape, "x")));
      continue;
    }
    mismatch.compare(found->second, spec.shape, file_.tensors().at(found->second));
    rest.erase(found);
  }
  for (const auto& [name, stored] : rest) mismatch.unknown.push_back(stored);
  VMOBA_CHECK_INPUT(mismatch.none(),
                    "expected '{}' (codec.weights) to hold the tensors of a Wan{} VAE with base_dim {}, found {}; use "
                    "the published file",
                    path_, config_.is_residual ? "2.2" : "2.1", config_.base_dim, mismatch.text());
}

TensorSource WanVaeWeights::load(at::ScalarType dtype, at::Device device) const {
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  return [this, options](const std::string& name, const std::vector<int64_t>&) {
    const std::string& stored = stored_.at(name);
    const at::Tensor tensor = file_.tensor(stored).to(options, /*non_blocking=*/false, /*copy=*/true);
    file_.release(stored);
    return tensor;
  };
}

}  // namespace vmoba::model
