// What the shapes of a transformer's tensors say about its sizes, for Architecture::read_sizes. Refers to the files.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "model/weights/weight_files.h"

namespace vmoba::model {

constexpr int64_t kMostBlocks = 10000;
constexpr int64_t kMostStated = 1 << 20;  // channels or tokens

class StoredShapes {
 public:
  // `kind` names the model in messages ("Wan"). `files` must outlive it.
  StoredShapes(const WeightFiles& files, std::string kind) : files_(files), kind_(std::move(kind)) {}

  bool has(const std::string& name) const { return files_.entries().contains(name); }
  bool has_any(const std::string& beginning) const;
  // A size of the tensor `name` with so many dimensions. Throws Error(kInput) where it is missing or has others.
  int64_t size(const std::string& name, size_t rank, size_t dimension) const;
  // One more than the highest number behind `prefix`, so that a block in the middle can be missed.
  int64_t blocks(const std::string& prefix) const;
  // Whether a tensor behind `prefix` has the part between dots in its name.
  bool blocks_have(const std::string& prefix, const std::string& part) const;
  // What the tensors cannot tell where some of them are missing: the number of config.json (`beside`), else theirs.
  // Throws Error(kInput) where it is above `most`.
  int64_t stated_or(const nlohmann::json& beside, const char* key, int64_t of_tensors,
                    int64_t most = kMostStated) const;

 private:
  const WeightFiles& files_;
  std::string kind_;
};

}  // namespace vmoba::model
