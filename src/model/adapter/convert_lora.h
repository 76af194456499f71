// vmoba-convert's part for LoRA: a file of one format into another, and what files add to the weights of a transformer.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/adapter/lora_file.h"
#include "model/adapter/weight_change.h"
#include "model/architecture.h"
#include "model/weights/weight_files.h"

namespace vmoba::model {

// Reads `in` (read_lora), scales it, and writes `out`, a safetensors file, in the format named `format`. Returns what
// was written, in words. `architecture_name` as architecture_of_lora takes it.
std::string convert_lora(const LoraSource& in, const std::string& out, const std::string& format, double strength,
                         at::ScalarType dtype, const std::string& architecture_name);

// Of all files ("FILE" or "N:FILE") together, at `strength`. Throws Error(kInput) where one has modules that the
// transformer `files`, at `transformer`, lacks, or other sizes.
Deltas read_deltas(const std::vector<std::string>& loras, double strength, const Architecture& architecture,
                   const WeightFiles& files, const std::string& transformer);

}  // namespace vmoba::model
