// Options of torch.ops.vmoba.attention: a text with the keys of the configuration's group `attention` (docs/config.md),
// as YAML or JSON, and `layer`. Unknown keys and values out of range are errors, as they are in a configuration.
#pragma once
#include <string_view>

#include "attention/attention.h"

namespace vmoba::ops {

// What the layer does that `text` describes; "" stands for the defaults. Texts are read once and kept. Throws
// Error(kInput) for a text that is no such options, naming the key. Safe to call from several threads.
attention::LayerAttention layer_of_options(std::string_view text);

}  // namespace vmoba::ops
