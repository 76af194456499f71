// A configuration with a field of every kind, for the configuration's tests.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba::test {

enum class Speed { kSlow, kQuick };
inline const Choices<Speed>& choices_of(Speed) {
  static const Choices<Speed> table("speed", {{Speed::kSlow, "slow"}, {Speed::kQuick, "quick"}});
  return table;
}

struct InnerConfig {
  std::string mode = "slow";
  int64_t depth = 1;

  void visit(ConfigVisitor& v) {
    v.field("mode", mode, "Fast | slow.", one_of({"slow", "fast"}));
    v.field("depth", depth, "Depth.", between(1, 10));
  }
};

struct BigConfig {
  int64_t steps = 100;
  double rate = 0.5;
  bool on = true;
  std::string name = "default";
  std::vector<int64_t> sizes = {1, 2, 2};
  std::vector<double> weights = {1.0};
  std::vector<std::string> words = {"x"};
  Speed speed = Speed::kSlow;
  InnerConfig inner;
  std::vector<InnerConfig> items;
  int64_t last = 0;

  void visit(ConfigVisitor& v) {
    v.field("steps", steps, "Number of steps.");
    v.field("rate", rate, "Rate.", above(0.0));
    v.field("on", on, "Switch.");
    v.field("name", name, "Name.");
    v.field("sizes", sizes, "Sizes.", list_of(3, 1));
    v.field("weights", weights, "Weights.");
    v.field("words", words, "Words.");
    v.field("speed", speed, "Speed.");
    v.group("inner", "A group.", inner);
    v.groups("items", "A list of groups.", items);
    v.field("last", last, "Behind the groups.");
  }
};

inline VisitFunction visitor(BigConfig& config) {
  return [&config](ConfigVisitor& v) { config.visit(v); };
}

}  // namespace vmoba::test
