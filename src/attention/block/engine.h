// The engine of block-sparse attention: attention of every query over the blocks of keys that a method selected for
// it, in one softmax, and its gradients with the selection held constant.
//
// Stages (docs/attention.md): a method's select gives a BlockMask; index makes lists of rows of it; attend; backward.
// Two engines run them, the reference (tensor operations) and the native one (CUDA kernels). Engines own no memory
// between calls and launch on the current stream. Samples of a call have equally many text tokens: self_attention()
// splits others.
//
// Shape letters: B samples, S video tokens, X text tokens, Z = S + X, N heads, D head size, C blocks, E = C, or C + 1
// with the text block where there is text, W words of a mask.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "attention/attention.h"
#include "attention/block/block_mask.h"
#include "attention/block/partition.h"
#include "attention/block/tiles.h"

namespace vmoba::attention {

// One call's geometry and the layer whose method selects; `layer.sparse()` is true.
struct BlockProblem {
  Grid grid;
  int64_t text_tokens = 0;
  LayerAttention layer;
  std::shared_ptr<const PartitionTables> tables;
  std::shared_ptr<const TileTables> tiles = {};  // null where every query selects on its own
};

// Rows of each block, from a mask. The native engine's are those of SlotLists in attention/kernels/kernels.h; the
// reference makes its lists where it attends, and only `length_BNE` is defined.
struct RowLists {
  at::Tensor length_BNE = {};  // rows that attend each block
  at::Tensor word_rank_BNEW = {}, start_BNF = {}, row_BNR = {};
};

// Pieces that meet, of the native engine of tiles: TileLists in attention/kernels/tiles.h.
struct PieceLists {
  at::Tensor keys_BNUP = {}, key_count_BNU = {}, rows_BNCP = {}, row_count_BNC = {}, next_2 = {};
  at::Tensor key_tokens_BNU = {};  // undefined without strips
};

// Means of blocks, for the engine of tiles: each joins the softmax of the queries whose tile does not attend its block.
struct BlockMeans {
  at::Tensor keys_BNCD = {}, values_BNCD = {};  // bf16
  at::Tensor bias_BNC =
      {};  // fp32, added to the scaled scores: the log of the block's tokens, and what the head learnt
};

// What was selected: the mask is the method's, the rest the engine's. All of it is kept for backward.
struct Selection {
  BlockMask mask = {};
  // K and V in block order. A method may make them on its way; else the native engine does, where it needs them.
  at::Tensor k_blocks_BZND = {}, v_blocks_BZND = {};
  at::Tensor q_blocks_BZND = {};  // the same of q, for the engine of tiles
  RowLists lists = {};
  PieceLists pieces = {};
  BlockMeans means = {};  // undefined: none

  // Calls `function` with every tensor, defined or not, in a fixed order.
  template <typename Self, typename Function>
  static void visit_tensors(Self& self, const Function& function) {
    function(self.mask.words_BNEW);
    function(self.mask.tiles_BNUC);
    function(self.k_blocks_BZND);
    function(self.v_blocks_BZND);
    function(self.q_blocks_BZND);
    function(self.lists.length_BNE);
    function(self.lists.word_rank_BNEW);
    function(self.lists.start_BNF);
    function(self.lists.row_BNR);
    function(self.pieces.keys_BNUP);
    function(self.pieces.key_count_BNU);
    function(self.pieces.rows_BNCP);
    function(self.pieces.row_count_BNC);
    function(self.pieces.next_2);
    function(self.pieces.key_tokens_BNU);
    function(self.means.keys_BNCD);
    function(self.means.values_BNCD);
    function(self.means.bias_BNC);
  }
};

struct Attended {
  at::Tensor out_BZND = {};  // dtype of q, original token order
  at::Tensor lse_BNZ = {};   // fp32 (fp64 for fp64 inputs), natural log, original token order
};

struct BlockGradients {
  at::Tensor dq_BZND = {}, dk_BZND = {}, dv_BZND = {};
  std::vector<at::Tensor> dlearnt = {};
};

class BlockEngine {
 public:
  virtual ~BlockEngine() = default;
  virtual bool native() const = 0;
  // Whether attend() and backward() take Selection::means into the softmax; the gradient of what a head learnt is then
  // BlockGradients::dlearnt.
  virtual bool takes_means() const { return false; }
  // Completes a method's selection, of which the mask and the means suffice.
  virtual Selection index(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                          const at::Tensor& v_BZND, Selection selection) const = 0;
  // Attention over the selected blocks, with an indexed selection of these tensors.
  virtual Attended attend(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                          const at::Tensor& v_BZND, const Selection& selection) const = 0;
  // Gradients of q, k and v. `attended` may belong to a softmax over more keys than the blocks': the gradients are
  // then the blocks' part.
  virtual BlockGradients backward(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                                  const at::Tensor& v_BZND, const Selection& selection, const Attended& attended,
                                  const at::Tensor& dout_BZND) const = 0;
};

struct BlockForward {
  Selection selection;
  Attended attended;
  at::Tensor pairs_N;  // fp64 on q's device: (query, key) pairs that each head attends over blocks, over B
};

// The method's selection, indexed.
Selection block_select(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                       const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt = {});

// Attention over a selection, the method's extra branch included.
BlockForward block_attend(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                          const at::Tensor& k_BZND, const at::Tensor& v_BZND, Selection selection,
                          at::TensorList learnt = {});

// Both.
BlockForward block_forward(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                           const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt = {});

BlockGradients block_backward(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                              const at::Tensor& k_BZND, const at::Tensor& v_BZND, const BlockForward& saved,
                              const at::Tensor& dout_BZND, at::TensorList learnt = {});

// The mask by words, made of that of tiles where there is none.
BlockMask with_words(const BlockProblem& problem, BlockMask mask);

// Which blocks each video token attends, as bool [B, N, C, S], permuted positions.
at::Tensor attends_BNCS(const BlockProblem& problem, const Selection& selection);

}  // namespace vmoba::attention
