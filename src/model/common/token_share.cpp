#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "model/sequence_parallel.h"

namespace vmoba::model {
namespace {

// `x` with zeros behind it along `dim` up to `count`.
at::Tensor filled(const at::Tensor& x, int64_t dim, int64_t count) {
  if (x.size(dim) == count) return x;
  std::vector<int64_t> shape = x.sizes().vec();
  shape[size_t(dim)] = count - x.size(dim);
  return at::cat({x, at::zeros(shape, x.options().requires_grad(false))}, dim);
}

// The way back of a narrow() writes and adds a whole tensor, needed or not.
at::Tensor first_tokens(const at::Tensor& x_BS, int64_t tokens) {
  return x_BS.size(1) == tokens ? x_BS : x_BS.narrow(1, 0, tokens);
}

}  // namespace

TokenShare::TokenShare(SequenceParallel* ranks, int64_t tokens) : ranks_(ranks), tokens_(tokens), own_(tokens) {
  if (ranks_ == nullptr) return;
  own_ = (tokens + ranks_->size() - 1) / ranks_->size();
  begin_ = own_ * ranks_->rank();
}

at::Tensor TokenShare::cut(const at::Tensor& x, int64_t dim) const {
  if (ranks_ == nullptr) return x;
  const int64_t begin = std::min(begin_, tokens_), end = std::min(begin_ + own_, tokens_);
  return filled(x.narrow(dim, begin, end - begin), dim, own_);
}

at::Tensor TokenShare::own(const at::Tensor& x_BS) const {
  return cut(x_BS, 1);
}

at::Tensor TokenShare::own_rows(const at::Tensor& table_S) const {
  return cut(table_S, 0);
}

at::Tensor TokenShare::own_runs(const at::Tensor& rows_BG) const {
  const int64_t runs = rows_BG.size(1);
  if (ranks_ == nullptr || runs == 1) return rows_BG;
  const auto options = at::TensorOptions().dtype(at::kLong).device(rows_BG.device());
  // Rows behind the last token take the last run's.
  const at::Tensor token = at::arange(begin_, begin_ + own_, options).clamp_max(tokens_ - 1);
  return at::index_select(rows_BG, 1, token.floor_divide(tokens_ / runs));
}

at::Tensor TokenShare::gather(const at::Tensor& x_BSE) const {
  return ranks_ == nullptr ? x_BSE : first_tokens(ranks_->gather_tokens(x_BSE), tokens_);
}

TokenShare::Heads TokenShare::begin_to_heads(const at::Tensor& x_BSND) const {
  Heads out;
  out.tokens_ = tokens_;
  if (ranks_ == nullptr)
    out.x_BSND_ = x_BSND;
  else
    out.under_way_ = ranks_->begin_to_heads(x_BSND);
  return out;
}

at::Tensor TokenShare::Heads::wait() {
  return under_way_ ? first_tokens(under_way_->wait(), tokens_) : x_BSND_;
}

at::Tensor TokenShare::to_tokens(const at::Tensor& x_BSND) const {
  return ranks_ == nullptr ? x_BSND : ranks_->to_tokens(filled(x_BSND, 1, own_ * ranks_->size()));
}

}  // namespace vmoba::model
