#include "model/codec/codec_weights.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <filesystem>

#include "core/check.h"
#include "model/weights/model_folder.h"
#include "model/weights/tensor_mismatch.h"

namespace vmoba::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolderFile = "diffusion_pytorch_model.safetensors";

std::string find_file(const std::string& path, const CodecFileKind& kind) {
  VMOBA_CHECK_INPUT(!path.empty(), "codec.weights: expected the weights of a VAE for codec.type {}, found nothing; {}",
                    kind.type, kind.where_from);
  VMOBA_CHECK_INPUT(fs::exists(path), "codec.weights: expected the weights of a VAE at '{}', found nothing; {}", path,
                    kind.where_from);
  const std::string place = model_folder(path, "vae", "codec.weights");
  if (!fs::is_directory(place)) return place;
  const fs::path file = fs::path(place) / kFolderFile;
  VMOBA_CHECK_INPUT(fs::exists(file), "codec.weights: expected {} in '{}' or its vae/ folder, found neither; {}",
                    kFolderFile, path, kind.where_from);
  return file.string();
}

std::vector<int64_t> without_trailing_ones(std::vector<int64_t> shape) {
  while (!shape.empty() && shape.back() == 1) shape.pop_back();
  return shape;
}

}  // namespace

TensorSource recorder(std::vector<ParameterSpec>& specs) {
  return [&specs](const std::string& name, const std::vector<int64_t>& shape) {
    specs.push_back({name, shape, {}});
    return at::empty(shape, at::kMeta);
  };
}

CodecWeights::CodecWeights(const std::string& path, const CodecFileKind& kind)
    : path_(find_file(path, kind)), file_(path_) {
  for (const auto& [name, info] : file_.tensors()) {
    VMOBA_CHECK_INPUT(stored_.emplace(kind.diffusers_name(name), name).second,
                      "expected each tensor once in '{}' (codec.weights), found '{}' under two names", path_, name);
  }
}

// A single file may lie in a folder of other models: only diffusers' own file name goes with a config.json.
std::string CodecWeights::config_file() const {
  const fs::path config = fs::path(path_).parent_path() / "config.json";
  return fs::path(path_).filename() == kFolderFile && fs::exists(config) ? config.string() : "";
}

std::vector<int64_t> CodecWeights::shape(const std::string& name) const {
  const auto found = stored_.find(name);
  return found == stored_.end() ? std::vector<int64_t>{} : file_.tensors().at(found->second).shape;
}

void CodecWeights::check(const std::vector<ParameterSpec>& specs, const std::string& what) const {
  std::map<std::string, std::string> rest = stored_;
  TensorMismatch mismatch;
  for (const ParameterSpec& spec : specs) {
    const auto found = rest.find(spec.name);
    if (found == rest.end()) {
      mismatch.missing.push_back(fmt::format("{} {}", spec.name, fmt::join(spec.shape, "x")));
      continue;
    }
    const TensorInfo& info = file_.tensors().at(found->second);
    const bool same = without_trailing_ones(info.shape) == without_trailing_ones(spec.shape);
    mismatch.compare(found->second, same ? info.shape : spec.shape, info);
    rest.erase(found);
  }
  for (const auto& [name, stored] : rest) mismatch.unknown.push_back(stored);
  VMOBA_CHECK_INPUT(mismatch.none(),
                    "expected '{}' (codec.weights) to hold the tensors of {}, found {}; use the published file", path_,
                    what, mismatch.text());
}

TensorSource CodecWeights::load(at::ScalarType dtype, at::Device device) const {
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  return [this, options](const std::string& name, const std::vector<int64_t>& shape) {
    const std::string& stored = stored_.at(name);
    const at::Tensor tensor = file_.tensor(stored).to(options, /*non_blocking=*/false, /*copy=*/true);
    file_.release(stored);
    return tensor.view(shape);
  };
}

}  // namespace vmoba::model
