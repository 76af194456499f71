#include "model/common/joint_share.h"

#include <ATen/ops/cat.h>

namespace vmoba::model {
namespace {

int64_t share_of(SequenceParallel* ranks, int64_t tokens) {
  return ranks == nullptr ? tokens : (tokens + ranks->size() - 1) / ranks->size();
}

}  // namespace

JointShare::JointShare(SequenceParallel* ranks, int64_t video_tokens, int64_t text_tokens)
    : video_(ranks, video_tokens),
      text_(ranks, text_tokens),
      video_tokens_(video_tokens),
      text_tokens_(text_tokens),
      own_video_(share_of(ranks, video_tokens)),
      own_text_(share_of(ranks, text_tokens)) {}

std::pair<at::Tensor, at::Tensor> JointShare::split(const at::Tensor& rows_BZ) const {
  return {rows_BZ.narrow(1, 0, own_video_), rows_BZ.narrow(1, own_video_, own_text_)};
}

JointShare::Heads JointShare::begin_to_heads(const at::Tensor& rows_BZND) const {
  Heads out;
  if (!has_ranks()) {
    out.all_BZND_ = rows_BZND;
    return out;
  }
  const auto [video_BSND, text_BLND] = split(rows_BZND);
  out.video_ = video_.begin_to_heads(video_BSND);
  out.text_ = text_.begin_to_heads(text_BLND);
  return out;
}

at::Tensor JointShare::Heads::wait() {
  if (all_BZND_.defined()) return all_BZND_;
  const at::Tensor video_BSND = video_.wait();
  return at::cat({video_BSND, text_.wait()}, 1);
}

at::Tensor JointShare::to_rows(const at::Tensor& all_BTND) const {
  if (!has_ranks()) return all_BTND;
  const at::Tensor video_BSND = video_.to_tokens(all_BTND.narrow(1, 0, video_tokens_));
  return at::cat({video_BSND, text_.to_tokens(all_BTND.narrow(1, video_tokens_, text_tokens_))}, 1);
}

}  // namespace vmoba::model
