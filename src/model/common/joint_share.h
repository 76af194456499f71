// Video and text tokens that attend to each other, on the ranks that compute a sample together: each rank holds a run
// of the video's tokens and a run of the text's, one behind the other. Without ranks it holds all of both.
//
// Shape letters: B samples, Z own rows (video, then text), S video and L text tokens of all ranks, N heads, D head
// size, P ranks.
#pragma once
#include <ATen/core/Tensor.h>

#include <utility>

#include "model/sequence_parallel.h"

namespace vmoba::model {

class JointShare {
 public:
  // `ranks` may be null.
  JointShare(SequenceParallel* ranks, int64_t video_tokens, int64_t text_tokens);

  const TokenShare& video() const { return video_; }
  const TokenShare& text() const { return text_; }
  bool has_ranks() const { return video_.has_ranks(); }
  int64_t text_tokens() const { return text_tokens_; }

  // Own rows [B, Z, ...] as views: video, text.
  std::pair<at::Tensor, at::Tensor> split(const at::Tensor& rows_BZ) const;

  // Around self attention: own rows [B, Z, N, D] -> [B, S + L, N/P, D].
  class Heads {
   public:
    // To be called once.
    at::Tensor wait();

   private:
    friend class JointShare;
    at::Tensor all_BZND_;  // without ranks
    TokenShare::Heads video_, text_;
  };
  Heads begin_to_heads(const at::Tensor& rows_BZND) const;
  // The way back.
  at::Tensor to_rows(const at::Tensor& all_BTND) const;

 private:
  TokenShare video_, text_;
  int64_t video_tokens_, text_tokens_, own_video_, own_text_;
};

}  // namespace vmoba::model
