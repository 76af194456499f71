// Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for the matrices of a transformer's numbered
// blocks, as torch.optim.Muon computes it; AdamW for everything else. The momentum of a matrix is orthogonalised by
// Newton-Schulz in bf16. Where ranks hold the parameters together, each of them orthogonalises whole matrices in turn:
// the numbers are those of one rank.
#pragma once
#include <vector>

#include "train/optim/optimizer.h"
#include "train/optim/tensor_updates.h"

namespace vmoba::train {

// "momentum" (fp32) of matrices, AdamW's moments of the rest.
std::vector<StateLayout> muon_state(const OptimizerConfig& config, const model::Parameter& parameter);

// A matrix with two dimensions in a numbered block ("blocks.3.ffn.net.2.weight"): not embeddings, heads, norms, biases.
bool takes_muon(const model::Parameter& parameter);

// The matrix with its singular values moved towards 1, nearly U V^T, in bf16: `steps` quintic Newton-Schulz iterations
// with the coefficients 3.4445, -4.775, 2.0315. x is [rows, columns].
at::Tensor orthogonalized(const at::Tensor& x, int64_t steps);

class Muon final : public Optimizer {
 public:
  Muon(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters, const Placement& placement);
  using Optimizer::step;
  void step(const Update& update) override;
  void set_steps(int64_t steps_done) override { steps_ = steps_done; }

 private:
  struct Matrix {
    at::Tensor weight, momentum;
    std::vector<int64_t> shape;  // of the whole
    std::array<uint32_t, 2> key{};
    size_t parameter = 0;  // its number
  };
  // What is to be orthogonalised of each matrix's part, in bf16.
  at::Tensor direction(const Matrix& matrix, const Update& update) const;
  // Of up to placement_.parts matrices of one shape, the same of their orthogonalised wholes.
  std::vector<at::Tensor> orthogonalized_parts(const std::vector<at::Tensor>& directions, at::IntArrayRef shape) const;
  void apply(const Matrix& matrix, const at::Tensor& change, const Update& update) const;

  OptimizerConfig config_;
  Placement placement_;
  std::vector<Matrix> matrices_;  // those of one shape one behind the other
  AdamGroup rest_;
  int64_t steps_ = 0;
};

}  // namespace vmoba::train
