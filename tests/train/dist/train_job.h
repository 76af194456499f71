// vmoba-train as one process or several ranks, and what two runs logged beside each other.
#pragma once
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "support/process.h"

namespace vmoba::test {

inline const std::string kTrain = test::bin_dir() + "/vmoba-train";
inline const std::string kTiny = test::fixtures() + "/train/tiny.yaml";
inline const std::string kQuickstart = test::source_dir() + "/configs/quickstart.yaml";
inline const std::vector<std::string> kEnvironment = {"OMP_NUM_THREADS=1"};

// What begins a command of several ranks.
inline std::vector<std::string> mpirun(int ranks) {
  std::istringstream words(VMOBA_MPIRUN);
  std::vector<std::string> out;
  for (std::string word; words >> word;) out.push_back(word);
  out.insert(out.end(), {"-n", std::to_string(ranks)});
  return out;
}

// ranks 0: one process without mpirun.
inline std::vector<std::string> train_command(int ranks, const std::string& config, const std::string& run_dir,
                                              const std::vector<std::string>& extra = {}) {
  std::vector<std::string> out = ranks > 0 ? mpirun(ranks) : std::vector<std::string>();
  out.insert(out.end(), {kTrain, "--config", config, "run.dir=" + run_dir, "run.threads=1", "train.tensorboard=false"});
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

inline ProcessResult train(int ranks, const std::string& config, const std::string& run_dir,
                           const std::vector<std::string>& extra = {}) {
  const ProcessResult result = run_process(train_command(ranks, config, run_dir, extra), kEnvironment);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return result;
}

// Losses and gradient norms of two runs, step by step.
inline void check_same_metrics(const std::string& a, const std::string& b, double relative) {
  const auto of_a = metrics(a), of_b = metrics(b);
  REQUIRE(of_a.size() == of_b.size());
  REQUIRE_FALSE(of_a.empty());
  for (size_t i = 0; i < of_a.size(); ++i) {
    CHECK(of_a[i]["step"] == of_b[i]["step"]);
    for (const char* key : {"loss", "grad_norm", "density"}) {
      const double x = of_a[i][key], y = of_b[i][key];
      INFO("step " << i + 1 << " " << key << ": " << x << " and " << y);
      CHECK(std::abs(x - y) <= relative * std::abs(x));
    }
  }
}

}  // namespace vmoba::test
