// Sets of tensors that must agree bit by bit.
#pragma once
#include <ATen/ATen.h>

#include <map>
#include <string>

#include "support/catch.h"

namespace vmoba::test {

using NamedTensors = std::map<std::string, at::Tensor>;

inline void check_same(const NamedTensors& found, const NamedTensors& expected) {
  REQUIRE(found.size() == expected.size());
  for (const auto& [name, tensor] : expected) {
    INFO(name);
    REQUIRE(found.at(name).defined() == tensor.defined());
    if (tensor.defined()) CHECK(at::equal(found.at(name), tensor));
  }
}

}  // namespace vmoba::test
