// Which of a run's checkpoints stay. Only what the run folder made itself is ever removed.
#pragma once
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace vmoba::train {

struct Rotation {
  Rotation(int64_t keep = 0) : newest(keep) {}  // NOLINT: a number of checkpoints is the plain policy

  int64_t newest;                           // so many stay; 0: all
  int64_t every = 0;                        // those of steps that it divides stay, too; 0: none
  std::string folder;                       // id of the run folder (run_folder.h): checkpoints of others are left alone
  std::function<std::set<int64_t>()> also;  // asked at each rotation: steps that stay, whatever the numbers say
};

// Of these steps, ascending, those that go.
std::vector<int64_t> steps_to_remove(const std::vector<int64_t>& steps, const Rotation& rotation);

// Removes them from the run's folder.
void rotate_checkpoints(const std::string& run_dir, const Rotation& rotation);

}  // namespace vmoba::train
