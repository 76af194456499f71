// What a run logged.
#pragma once
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace vmoba::test {

// The records of <run_dir>/metrics.jsonl.
inline std::vector<nlohmann::json> metrics(const std::string& run_dir) {
  std::ifstream file(run_dir + "/metrics.jsonl");
  std::vector<nlohmann::json> out;
  for (std::string line; std::getline(file, line);) out.push_back(nlohmann::json::parse(line));
  return out;
}

}  // namespace vmoba::test
