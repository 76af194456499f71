// Programs whose failure is the test's.
#pragma once
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/process.h"

namespace vmoba::test {

using Strings = std::vector<std::string>;

inline Strings operator+(Strings a, const Strings& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// What the program prints; it must end well. Python's packages fetch nothing.
inline std::string must_run(const Strings& command,
                            const Strings& environment = {"OMP_NUM_THREADS=1", "HF_HUB_OFFLINE=1"}) {
  std::string line;
  for (const std::string& word : command) line += word + " ";
  const ProcessResult result = run_process(command, environment);
  INFO(line << "\n" << result.output);
  REQUIRE(result.exit_code == 0);
  return result.output;
}

}  // namespace vmoba::test
