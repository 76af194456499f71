#include "model/weights/model_folder.h"

#include <filesystem>

#include "core/check.h"
#include "core/file_kind.h"

namespace vmoba::model {

namespace fs = std::filesystem;

std::string model_folder(const std::string& path, const std::string& part, const std::string& key) {
  VMOBA_CHECK_INPUT(fs::exists(path),
                    "{}: expected a file or folder, found nothing at '{}'; docs/pretrained.md says where to get it",
                    key, path);
  const std::string kind = fs::path(path).extension().string();
  VMOBA_CHECK_INPUT(kind != ".pth" && kind != ".pt" && kind != ".bin" && kind != ".ckpt",
                    "{}: expected safetensors, found a pickle, '{}'; {}", key, path, pickle_cure(path));
  const fs::path inner = fs::path(path) / part;
  return fs::is_directory(inner) ? inner.string() : path;
}

}  // namespace vmoba::model
