// A method of sparse attention: one row of the table in methods.cpp. Everything outside a method's folder that depends
// on the method asks its row (docs/adding_a_method.md).
//
// A method decides which blocks of keys each query attends; the engine (attention/block) computes the attention over
// them and its gradients. Rows are constant and live as long as the program.
//
// Shape letters: B samples, S video tokens, X text tokens, Z = S + X, N heads, D head size.
#pragma once
#include <ATen/core/Tensor.h>

#include <any>
#include <string>
#include <vector>

#include "attention/attention.h"

namespace vmoba::attention {

struct Attended;      // block/engine.h
struct BlockProblem;  // block/engine.h
struct Selection;     // block/engine.h

// A method's struct in the `attention:` group, without its type.
struct MethodPart {
  std::any (*make)() = nullptr;  // null: the method has none
  void (*visit)(std::any& part, ConfigVisitor& v) = nullptr;
  void (*validate)(const std::any& part) = nullptr;  // fields that must agree with each other; ranges stand in visit
};

template <typename Part>
MethodPart method_part() {
  return {[]() -> std::any { return Part{}; },
          [](std::any& part, ConfigVisitor& v) { std::any_cast<Part&>(part).visit(v); },
          [](const std::any& part) { std::any_cast<const Part&>(part).validate(); }};
}

struct BranchGradients {
  at::Tensor dq_BZND, dk_BZND, dv_BZND;  // undefined: none
  std::vector<at::Tensor> dlearnt;
};

// A second attention of every query, over keys of the method's own making. It joins the softmax over the blocks: both
// results are merged by log-sum-exp. An engine that takes Selection::means computes them itself and leaves it out.
struct ExtraBranch {
  // Its own softmax and log-sum-exp; -inf where a query has no such key.
  Attended (*attend)(const BlockProblem& problem, const Selection& selection, const at::Tensor& q_BZND,
                     const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt) = nullptr;
  // Its part of the gradients; `merged` is the result of both branches, `dout` the gradient of its `out`.
  BranchGradients (*backward)(const BlockProblem& problem, const Selection& selection, const at::Tensor& q_BZND,
                              const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt,
                              const Attended& merged, const at::Tensor& dout_BZND) = nullptr;
};

// Chooses the blocks that each query attends, for tensors of the call's shape.
using SelectFunction = Selection (*)(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                                     const at::Tensor& v_BZND, at::TensorList learnt);

struct Method {
  const char* name;  // attention.backend
  MethodPart part;
  // Sets partition, chunk and rule of sparse layer `index` (0 is the first behind dense_layers); `sparsity` as in
  // layer_attention().
  void (*plan)(const std::any& part, int64_t index, double sparsity, LayerAttention& layer) = nullptr;
  // Optimiser steps in which density falls from 1; null: none.
  int64_t (*density_steps)(const std::any& part) = nullptr;
  // Throws Error(kInput) where the part names what a network of so many layers and heads lacks; null: it names nothing.
  void (*check_network)(const std::any& part, int64_t layers, int64_t heads) = nullptr;
  // Throws Error(kInput) where the layer's rule cannot be.
  void (*check)(const LayerAttention& layer) = nullptr;
  // See learnt_parameters(); null: none.
  std::vector<LearntParameter> (*learnt)(const LayerAttention& layer, int64_t heads, int64_t head_dim) = nullptr;
  // All that a layer learns under any rule.
  std::vector<LearntParameter> (*could_learn)(int64_t heads, int64_t head_dim) = nullptr;
  SelectFunction select = nullptr;         // in tensor operations, on any device; null: full attention
  SelectFunction select_native = nullptr;  // by kernels, for tensors that the native engine takes; null: `select`
  const ExtraBranch* (*extra)(const LayerAttention& layer) = nullptr;  // null, or gives null: none
  // Density (0 to 1) that the rule asks for in `blocks` blocks.
  double (*expected_density)(const LayerAttention& layer, int64_t blocks) = nullptr;
  // See layer_flops().
  double (*flops)(const LayerAttention& layer, const Grid& grid, int64_t heads, int64_t head_dim,
                  double density) = nullptr;
  // Queries that choose blocks together: runs of so many tokens of a block in permuted order (block/tiles.h); 1: every
  // query on its own, 0: all of a block. Null: 1.
  int64_t (*query_tile)(const LayerAttention& layer) = nullptr;
  // See heads_select_together(); null: every head selects on its own.
  std::string (*heads_select_together)(const LayerAttention& layer) = nullptr;
};

// Method::query_tile of the layer.
int64_t query_tile(const LayerAttention& layer);

// Method::extra of the layer.
const ExtraBranch* extra_branch(const LayerAttention& layer);

// The table, in the order of documentation.
const std::vector<const Method*>& methods();

// The row with this name; throws Error(kInput) listing the names.
const Method& find_method(const std::string& name);

}  // namespace vmoba::attention
