// Damage to files: what disks, editors, half downloads and other programs do to them.
#pragma once
#include <string>
#include <vector>

#include "core/random.h"

namespace vmoba::test {

// One to four changes of bytes, words or numbers; of JSON also of values, keys and levels.
std::string damaged(const std::string& bytes, bool is_json, RandomStream& random);

// `json` with each of its values in turn replaced by each of another type, NaN, a number beyond double's range, one
// beyond int64, and a hundred thousand levels; and with each key left out.
std::vector<std::string> wrong_json(const std::string& json);

}  // namespace vmoba::test
