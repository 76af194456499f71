// Batches whose samples have texts of different lengths, for kernels that take one number of tokens. Tensors are views
// of the caller's; nothing but sizes along the tokens is read, so that a batch that is only traced may pass through.
//
// Shape letters: B samples, S video tokens, X text tokens behind them, N heads, D head size.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace vmoba::attention {

// Samples begin ... begin + count - 1 have `length` text tokens each.
struct EqualSamples {
  int64_t begin, count, length;
  at::Tensor of(const at::Tensor& x_B) const { return x_B.narrow(0, begin, count); }
};

// All samples where their lengths are equal (empty: `whole` each), else each one.
std::vector<EqualSamples> equal_samples(at::IntArrayRef lengths, int64_t batch, int64_t whole);

// Throws Error(kInput) unless there are no lengths, or `batch` ones of `least` to `most`.
void check_lengths(at::IntArrayRef lengths, int64_t batch, int64_t least, int64_t most);

// Attention of samples with `text_tokens` text tokens each: q, k, v [B, S+X, N, D] -> [B, S+X, N, D].
using AttendEqual = std::function<at::Tensor(const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                                             const at::Tensor& v_BZND, int64_t text_tokens)>;

// `attend` for every run of equal samples, without the text beyond their lengths, whose rows of the result are zeros.
at::Tensor attend_by_samples(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                             int64_t video_tokens, int64_t text_tokens, at::IntArrayRef text_lengths,
                             const AttendEqual& attend);

}  // namespace vmoba::attention
