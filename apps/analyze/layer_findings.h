// What the attention of a layer looks like, and what selections of blocks would keep of it: means over heads, clips and
// noise levels.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "attention/block/partition.h"
#include "attention/observer.h"
#include "attention/vmoba/config.h"

namespace vmoba::apps {

// A running mean.
struct Mean {
  double sum = 0, weight = 0;
  void add(double value, double weight_of_it = 1) {
    sum += value * weight_of_it;
    weight += weight_of_it;
  }
  double value() const { return weight > 0 ? sum / weight : 0; }
};

// A way to choose blocks; the oracle knows the attention that it is to keep. kShare: the largest shares of a head.
// kFine: those of each query, by means of parts of blocks.
enum class Chooser { kOracle, kQueryHead, kHeadGlobal, kTile, kShare, kFine, kRandom, kOwn };
const Choices<Chooser>& choices_of(Chooser);

// Of one selection at one density that is asked for.
struct Kept {
  Mean mass;     // share of the attention that lies in the chosen blocks
  Mean density;  // attended pairs over all pairs
  Mean recall;   // of the oracle's blocks, those that were chosen, the own block left out

  // Mass and density of the blocks that one head's tokens attend, [C, S] in permuted order; returns the mass.
  double add(const at::Tensor& mass_CS, const at::Tensor& mask_CS, const attention::PartitionTables& tables);
};

struct PartitionFindings {
  std::array<int64_t, 3> chunk = {1, 0, 0};
  int64_t blocks = 0;
  Mean own;                                         // attention inside the own block
  std::map<std::pair<Chooser, double>, Kept> kept;  // by density that is asked for
  std::map<double, Mean> kept_by_sigma;             // of kQueryHead at the analysis's density
};

struct LayerFindings {
  std::map<attention::Partition, PartitionFindings> partitions;  // those with more than one block
  Kept configured;                   // what the configuration's own attention selects in this layer; without recall
  Mean entropy, keys_90;             // nats; keys that hold 90 % of a query's attention
  std::map<int64_t, Mean> evenness;  // of each head: keys that even attention of its entropy would use, of all
  std::vector<double> by_frames;     // attention at a distance of so many frames
  std::vector<std::vector<double>> by_rows_columns;  // at a distance of so many rows and columns
  std::vector<std::vector<double>> importance;       // attention outside the own cube, of the middle frame's queries
  double passes = 0;                                 // clips x levels x heads that the lists above are sums of
};

// Densities at which selections are compared; `density` is one of them.
std::vector<double> compared_densities(double density);

// Watches dense forward passes. Partitions are those of `config`.
class AttentionAnalysis : public attention::AttentionObserver {
 public:
  // `layers`: those that are looked at; empty: all.
  AttentionAnalysis(const attention::AttentionConfig& config, double density, std::vector<int64_t> layers);
  // The noise level of the passes that follow.
  void begin(double sigma) { sigma_ = sigma; }
  void observe(const attention::LayerAttention& layer, const attention::Grid& grid, int64_t text_tokens,
               const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND) override;

  const std::map<int64_t, LayerFindings>& layers() const { return findings_; }
  double density() const { return density_; }

  // Heads that average everything, as attention.mean_heads: their attention is as even as that of kEven of all keys.
  static constexpr double kEven = 0.9;
  std::vector<std::string> mean_heads() const;

  // Of every layer the partition in which top-k of each query keeps most at `density`; "full" where that is less than
  // `least`.
  std::vector<std::string> best_partitions(double least) const;
  std::string to_json(double least) const;
  // A block of YAML for a configuration.
  std::string to_yaml(double least) const;

 private:
  // What the configuration selects of a pass, [B, N, C, S]; undefined where the layer has full attention.
  struct Configured {
    attention::LayerAttention layer;
    at::Tensor mask_BNCS;
  };
  Configured configured(const attention::LayerAttention& layer, const attention::Grid& grid, const at::Tensor& q_BSND,
                        const at::Tensor& k_BSND) const;
  // `asked`: the layer that the configuration has, `asked_CS` what it selects for this head.
  void look_at_head(LayerFindings& out, const attention::LayerAttention& layer, const attention::Grid& grid,
                    int64_t head, const at::Tensor& q_SD, const at::Tensor& k_SD, const Configured& asked,
                    const at::Tensor& asked_CS);
  void compare(PartitionFindings& out, const attention::LayerAttention& layer, const attention::Grid& grid,
               int64_t head, const at::Tensor& mass_CS, const at::Tensor& q_SD, const at::Tensor& k_SD);

  attention::AttentionConfig config_;
  attention::VmobaConfig vmoba_;
  double density_;
  std::vector<int64_t> wanted_;
  double sigma_ = 0;
  std::map<int64_t, LayerFindings> findings_;
};

// The findings of a layer as one picture (PNG): what selections keep, locality, importance.
std::string findings_to_png(int64_t layer, const LayerFindings& findings);

}  // namespace vmoba::apps
