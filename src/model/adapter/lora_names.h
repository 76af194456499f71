// Names of tensors in adapter files, whichever tool wrote them. Used by lora_file.cpp only.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "model/architecture.h"

namespace vmoba::model {

enum class LoraPart {
  kA,           // [r, in]
  kB,           // [out, r]
  kBBias,       // [out]: peft's lora_bias
  kAlpha,       // one number
  kMagnitude,   // DoRA's
  kDifference,  // of the whole weight: .diff
  kBias,        // of the whole bias: .diff_b
};

struct LoraKey {
  Held held;            // by diffusers' names: several modules where the file has them as one
  std::string written;  // the module in the file's own names, without a prefix: what patterns of peft are about
  LoraPart part;
  std::optional<size_t> transformer;  // 1: names that begin with "transformer_2." or the like; else nothing
  bool from_peft = false;             // behind "base_model.model."
};

// Nothing where the name belongs to no module of the architecture, or to another kind of adapter.
std::optional<LoraKey> parse_lora_key(const std::string& name, const Architecture& architecture);

// Before kohya's flattened names, as written.
inline constexpr const char* kKohyaPrefix = "lora_unet_";

// Another kind of adapter that these names belong to: "LoKr", "LoHa"; "" for none that is known.
std::string other_adapter_kind(const std::vector<std::string>& names);

}  // namespace vmoba::model
