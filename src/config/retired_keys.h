// Keys of the last release that this one still reads; the next one refuses them.
#pragma once
#include "config/root_config.h"

namespace vmoba {

RetiredKeys retired_keys();

// Writes what was found where it belongs now, and logs what to write instead; values that meant nothing are passed
// over. Throws Error(kInput) for values that had no meaning, and beside the keys that took their place.
void adopt_retired_keys(const RetiredKeys& retired, RootConfig& config);

}  // namespace vmoba
