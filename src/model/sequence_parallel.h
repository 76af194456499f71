// Several ranks compute one sample: each holds an equal run of its tokens, and around self attention each holds all
// tokens of some of the heads (DeepSpeed-Ulysses, Jacobs et al. 2309.14509). Models see this interface only; who moves
// the tensors is src/train/dist's affair.
//
// Shape letters: P ranks, B samples, S tokens of all ranks (a multiple of P: models pad), N heads (a multiple of P), D
// head size, E width. Every function is collective over the ranks of the sample and differentiable. Gradients of
// parameters are each rank's part: their sum over the ranks is the sample's.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

namespace vmoba::model {

// Heads that are on their way: what is computed until wait() runs beside the exchange.
class HeadsUnderWay {
 public:
  virtual ~HeadsUnderWay() = default;
  // [B, S, N/P, D]; to be called once. Its gradient travels back in the same way, beside what backward computes until
  // it comes to the place where the exchange began.
  virtual at::Tensor wait() = 0;
};

class SequenceParallel {
 public:
  virtual ~SequenceParallel() = default;
  virtual int64_t size() const = 0;
  virtual int64_t rank() const = 0;
  // This rank's tokens of all heads [B, S/P, N, D] -> all tokens of this rank's heads [B, S, N/P, D].
  virtual std::unique_ptr<HeadsUnderWay> begin_to_heads(const at::Tensor& x_BSND) = 0;
  // The way back, at once.
  virtual at::Tensor to_tokens(const at::Tensor& x_BSND) = 0;
  // [B, S/P, E] -> [B, S, E] on every rank. All ranks go on alike with the result: each keeps the gradient of its
  // tokens.
  virtual at::Tensor gather_tokens(const at::Tensor& x_BSE) = 0;
};

// The run of tokens that a rank holds of S, and the helpers that cut it out. Without ranks it is all of them.
//
// Where text takes part in self attention, it is a second run of tokens with a share of its own: video and text go to
// their heads separately, are joined there for attention ([B, S + L, N/P, D], video first), and go back separately.
class TokenShare {
 public:
  // `ranks` may be null.
  TokenShare(SequenceParallel* ranks, int64_t tokens);
  bool has_ranks() const { return ranks_ != nullptr; }
  // [B, S, ...] -> [B, own, ...], the last rank's end filled with zeros.
  at::Tensor own(const at::Tensor& x_BS) const;
  // The same of a table [S, ...].
  at::Tensor own_rows(const at::Tensor& table_S) const;
  // Rows of G equal runs of tokens [B, G, ...] -> rows that own tokens can be unflattened against: unchanged where one
  // run holds all tokens or there are no ranks, else one for each own token.
  at::Tensor own_runs(const at::Tensor& rows_BG) const;
  // [B, own, E] -> [B, S, E].
  at::Tensor gather(const at::Tensor& x_BSE) const;
  // Around self attention: [B, own, N, D] -> [B, S, N/P, D] and back.
  class Heads {
   public:
    // To be called once.
    at::Tensor wait();

   private:
    friend class TokenShare;
    at::Tensor x_BSND_;  // without ranks
    std::unique_ptr<HeadsUnderWay> under_way_;
    int64_t tokens_ = 0;
  };
  Heads begin_to_heads(const at::Tensor& x_BSND) const;
  at::Tensor to_tokens(const at::Tensor& x_BSND) const;
  // Which of a sample's `heads` heads is the first of this rank's there.
  int64_t first_head(int64_t heads) const { return ranks_ == nullptr ? 0 : heads / ranks_->size() * ranks_->rank(); }

 private:
  at::Tensor cut(const at::Tensor& x, int64_t dim) const;

  SequenceParallel* ranks_;
  int64_t tokens_;
  int64_t own_ = 0, begin_ = 0;  // begin may lie behind the last token
};

}  // namespace vmoba::model
