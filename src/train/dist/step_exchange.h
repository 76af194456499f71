// What the ranks tell each other at the end of every optimiser step, in one exchange: losses, counts, whether a signal
// asks to stop. All ranks compute the same totals from it, in the order of samples.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/progress.h"
#include "train/dist/mesh.h"
#include "train/dist/world.h"

namespace vmoba::train::dist {

// Of one rank.
struct StepResult {
  std::vector<double> losses;                              // mean loss of each pass
  std::map<std::string, std::pair<double, double>> pairs;  // attention::AttentionStats::Sums::by_partition
  // (attended, all) pairs of every layer's every head of the network, layer after layer; 0 where this rank has none.
  std::vector<std::pair<double, double>> pairs_by_head;
  int64_t heads = 0;  // of a layer there
  int signal = 0;     // stop signal that arrived, or 0
  int64_t tokens = 0, failed_clips = 0, memory_bytes = 0;
  bool writing = false, write_failed = false;  // of a checkpoint
  bool given_up = false;                       // the step, for want of data
  double data_wait_s = 0;
  double own_s = 0;  // of the step, waits for data or other ranks left out
  double flops = 0;  // of training on its samples
};

struct StepTotals {
  double loss = 0;  // mean over train.global_batch
  std::map<std::string, double> density;
  std::vector<LayerDensity> density_by_layer;
  int signal = 0;  // of any rank
  int64_t tokens = 0, failed_clips = 0;
  int64_t memory_bytes = 0;                    // greatest of the ranks
  double data_wait_s = 0;                      // longest
  double flops = 0;                            // of the step's samples
  bool writing = false, write_failed = false;  // any rank
  bool given_up = false;                       // any rank: nobody may update
  int bad_loss_rank = -1;                      // the first whose loss is not finite
  std::vector<double> own_s, data_wait_s_by_rank;
};

// Collective over the world; every rank's result must have as many losses and heads.
StepTotals exchange_step(World& world, const MeshSizes& sizes, const StepResult& result);

// Whether any rank of the group wants something, asked without a wait: the answers travel meanwhile. Collective.
class Vote {
 public:
  Vote(Communicator& ranks, bool own);
  bool any();

 private:
  at::Tensor mine_, all_;
  WorkPtr work_;
};

// Which rank holds the others up. Fed with every step's totals; speaks once per `every` steps.
class StragglerReport {
 public:
  StragglerReport(int64_t every, std::vector<std::string> hosts) : every_(every), hosts_(std::move(hosts)) {}
  // The report when one is due, else "". Never speaks for one rank.
  std::string add(const StepTotals& totals);

 private:
  int64_t every_;
  std::vector<std::string> hosts_;
  int64_t steps_ = 0;
  std::vector<double> own_s_, wait_s_;  // sums since the last report
};

}  // namespace vmoba::train::dist
