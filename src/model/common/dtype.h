// What torch calls the types of numbers of configurations (core/dtype.h).
#pragma once
#include <c10/core/ScalarType.h>

#include <string>

#include "core/dtype.h"

namespace vmoba::model {

at::ScalarType scalar_type(Dtype dtype);

// Of a word; throws Error(kInput) where it names no type.
inline at::ScalarType scalar_type(const std::string& word) {
  return scalar_type(choice_value<Dtype>(word));
}

}  // namespace vmoba::model
