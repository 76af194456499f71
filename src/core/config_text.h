// Words shared by the parts of the configuration that read and that write. Not for use outside src/core.
#pragma once
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba {

std::string join(const std::vector<std::string>& words, const char* separator = ", ");

// What a constraint allows, for messages and documentation: "> 0", "0 .. 1", "2 values, each >= 1"; "" where anything.
std::string allowed_text(const Constraint& constraint);

}  // namespace vmoba
