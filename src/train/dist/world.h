// The job that this process is a rank of: joining it, its control plane, leaving it in good order or ending it for all.
// One object per process, made on the main thread. Alone (no MPI launcher), it is a world of one and touches no MPI.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/dist/communicator.h"
#include "train/dist/launch.h"
#include "train/dist/operation_watch.h"

namespace vmoba::train::dist {

class MpiEngine;

class World {
 public:
  // Calls MPI_Init where a launcher waits for it; from then on log lines name the rank. Throws Error(kInput) for a
  // launch that cannot work (launch.h).
  World();
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return launch_.rank; }
  int size() const { return launch_.size; }
  int local_rank() const { return launch_.local_rank; }
  int local_size() const { return launch_.local_size; }
  const std::string& launcher() const { return launch_.launcher; }
  const std::string& host(int rank) const { return hosts_[size_t(rank)]; }
  const std::vector<std::string>& hosts() const { return hosts_; }

  // All ranks, CPU tensors.
  Communicator& control() { return *control_; }
  // The group of these world ranks for CPU tensors. Collective over the world, each rank naming its own group.
  std::unique_ptr<Communicator> make_group(const std::vector<int>& world_ranks);

  // Where operations on this process's GPU report (operation_watch.h).
  OperationWatch& device_watch() { return device_watch_; }

  // Time that a collective operation may wait for others before the job ends.
  void set_timeout_s(double timeout_s);
  // What this rank does now; others read it in reports.
  void note(int64_t step, const std::string& phase);
  // Seconds that this rank's host has waited for others.
  double waited_s() const;

  // The end of main: waits for the others and returns `code` where it is 0 or 75; any other code ends every rank with
  // it (MPI_Abort) and does not return.
  int leave(int code);

 private:
  friend class Patience;
  void join();

  Launch launch_;
  std::vector<std::string> hosts_;
  OperationWatch device_watch_;
  std::unique_ptr<MpiEngine> engine_;
  std::unique_ptr<Communicator> control_;
  int64_t step_ = 0;
};

// While it lives, waits on the control plane may take up to `limit_s`: around work that takes some ranks long. Inside
// another one the longer limit holds, inside one of the start that of the start.
class Patience {
 public:
  enum class Of { kWork, kStart };  // kStart: `limit_s` is parallel.start_timeout_s
  explicit Patience(World& world, double limit_s = 3600, Of of = Of::kWork);
  ~Patience();
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

 private:
  World& world_;
  double before_s_ = 0;
  bool starts_ = false;
};

// Returns when every rank has called it, after up to an hour: around work that one rank does while the others wait.
void wait_patiently(World& world);

}  // namespace vmoba::train::dist
