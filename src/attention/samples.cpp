#include "attention/samples.h"

#include <ATen/ops/empty.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::attention {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The first tokens of tensors of `sizes`, in runs: `tokens` of all samples of a run.
struct Runs : torch::CustomClassHolder {
  std::vector<EqualSamples> samples;
  std::vector<int64_t> tokens;
  std::vector<c10::SymInt> sizes;
  at::Tensor of(const at::Tensor& x, size_t run) const { return samples[run].of(x).narrow(1, 0, tokens[run]); }
};

// One tensor of what runs have; zeros behind a run's tokens.
at::Tensor joined(const Runs& runs, const variable_list& parts) {
  const auto defined = std::find_if(parts.begin(), parts.end(), [](const at::Tensor& part) { return part.defined(); });
  if (defined == parts.end()) return {};
  const at::Tensor out = at::empty_symint(runs.sizes, defined->options());
  for (size_t run = 0; run < parts.size(); ++run) {
    const at::Tensor own = runs.samples[run].of(out);
    const int64_t filled = parts[run].defined() ? runs.tokens[run] : 0;
    if (filled > 0) own.narrow(1, 0, filled).copy_(parts[run]);
    own.slice(1, filled).zero_();
  }
  return out;
}

variable_list parted(const Runs& runs, const at::Tensor& x) {
  variable_list out;
  for (size_t run = 0; run < runs.samples.size(); ++run) out.push_back(runs.of(x, run));
  return out;
}

const Runs& runs_of(AutogradContext* ctx) {
  return *static_cast<const Runs*>(ctx->saved_data["runs"].toCapsule().get());
}

// Slices and concatenations whose gradients are one pass over memory: autograd's own fill a tensor of x's size with
// zeros for every slice, and add those up.
struct Part : torch::autograd::Function<Part> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const c10::intrusive_ptr<Runs>& runs) {
    ctx->saved_data["runs"] = c10::IValue::make_capsule(runs);
    ctx->set_materialize_grads(false);
    return parted(*runs, x);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {joined(runs_of(ctx), grads), at::Tensor()};
  }
};

struct Join : torch::autograd::Function<Join> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList parts, const c10::intrusive_ptr<Runs>& runs) {
    ctx->saved_data["runs"] = c10::IValue::make_capsule(runs);
    return joined(*runs, parts.vec());
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out = parted(runs_of(ctx), grads[0]);
    out.resize(out.size() + 1);  // of the runs
    return out;
  }
};

}  // namespace

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
  const std::vector<EqualSamples> samples = equal_samples(text_lengths, int64_t(text_lengths.size()), text_tokens);
  if (samples.size() == 1 && samples[0].length == text_tokens) return attend(q_BSND, k_BSND, v_BSND, text_tokens);
  auto runs = c10::make_intrusive<Runs>();
  runs->samples = samples;
  runs->sizes = q_BSND.sym_sizes().vec();
  for (const EqualSamples& equal : samples) runs->tokens.push_back(video_tokens + equal.length);
  const variable_list q = Part::apply(q_BSND, runs), k = Part::apply(k_BSND, runs), v = Part::apply(v_BSND, runs);
  variable_list out;
  for (size_t run = 0; run < samples.size(); ++run) out.push_back(attend(q[run], k[run], v[run], samples[run].length));
  return Join::apply(at::TensorList(out), runs);
}

}  // namespace vmoba::attention
