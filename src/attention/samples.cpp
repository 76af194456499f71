#include "attention/samples.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::attention {

void check_lengths(at::IntArrayRef lengths, int64_t batch, int64_t least, int64_t most) {
  const auto possible = [&](int64_t length) { return length >= least && length <= most; };
  VMOBA_CHECK_INPUT(
      lengths.empty() || (int64_t(lengths.size()) == batch && std::all_of(lengths.begin(), lengths.end(), possible)),
      "attention: expected {} text lengths of {} to {}, found {}", batch, least, most, fmt::join(lengths, ", "));
}

std::vector<EqualSamples> equal_samples(at::IntArrayRef lengths, int64_t batch, int64_t whole) {
  if (lengths.empty()) return {{0, batch, whole}};
  if (std::all_of(lengths.begin(), lengths.end(), [&](int64_t length) { return length == lengths[0]; }))
    return {{0, batch, lengths[0]}};
  std::vector<EqualSamples> out;
  for (int64_t b = 0; b < batch; ++b) out.push_back({b, 1, lengths[size_t(b)]});
  return out;
}

at::Tensor attend_by_samples(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                             int64_t video_tokens, int64_t text_tokens, at::IntArrayRef text_lengths,
                             const AttendEqual& attend) {
  const std::vector<EqualSamples> runs = equal_samples(text_lengths, int64_t(text_lengths.size()), text_tokens);
  std::vector<at::Tensor> out;
  for (const EqualSamples& samples : runs) {
    const int64_t padding = text_tokens - samples.length;
    const auto own = [&](const at::Tensor& x) {
      const at::Tensor part = runs.size() == 1 ? x : samples.of(x);
      return padding == 0 ? part : part.narrow(1, 0, video_tokens + samples.length);
    };
    const at::Tensor attended = attend(own(q_BSND), own(k_BSND), own(v_BSND), samples.length);
    out.push_back(padding == 0 ? attended : at::constant_pad_nd(attended, {0, 0, 0, 0, 0, padding}));
  }
  return out.size() == 1 ? out[0] : at::cat(out);
}

}  // namespace vmoba::attention
