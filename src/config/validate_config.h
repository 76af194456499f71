// The `validate:` group: loss on clips that are never trained on.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace vmoba {

struct ValidateConfig {
  std::string path;    // held-out clips: a folder or manifest, as data.path
  double holdout = 0;  // share of the files of data.path that is held out in its place
  int64_t every = 500;
  int64_t clips = 16;
  std::vector<double> sigmas = {0.35, 0.55, 0.75};
  int64_t seed = 0;

  bool enabled() const { return !path.empty() || holdout > 0; }
  void visit(ConfigVisitor& v);
  // Throws Error(kInput) where fields do not agree.
  void validate() const;
};

}  // namespace vmoba
