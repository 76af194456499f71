#include "train/dist/ulysses.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "core/check.h"

// Shape letters: P ranks, B samples, S tokens of one rank, N heads, n = N/P heads of one rank, D head size.
namespace vmoba::train::dist {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor exchanged(Communicator& ranks, const at::Tensor& slices) {
  const at::Tensor in = slices.contiguous(), out = at::empty_like(in);
  ranks.all_to_all(in, out)->wait();
  return out;
}

at::Tensor tokens_to_heads(Communicator& ranks, const at::Tensor& x_BSND) {
  const at::Tensor by_heads_PBSnD = x_BSND.unflatten(2, {ranks.size(), -1}).permute({2, 0, 1, 3, 4});
  return exchanged(ranks, by_heads_PBSnD).permute({1, 0, 2, 3, 4}).flatten(1, 2);
}

at::Tensor heads_to_tokens(Communicator& ranks, const at::Tensor& x_BSnD) {
  const at::Tensor by_tokens_PBSnD = x_BSnD.unflatten(1, {ranks.size(), -1}).permute({1, 0, 2, 3, 4});
  return exchanged(ranks, by_tokens_PBSnD).permute({1, 2, 0, 3, 4}).flatten(2, 3);
}

struct RanksHolder : torch::CustomClassHolder {
  explicit RanksHolder(Communicator& ranks) : ranks(ranks) {}
  Communicator& ranks;
};

Communicator& ranks_of(AutogradContext* context) {
  const auto capsule = context->saved_data["ranks"].toCapsule();
  return static_cast<RanksHolder*>(capsule.get())->ranks;
}

void keep_ranks(AutogradContext* context, Communicator& ranks) {
  context->saved_data["ranks"] = c10::IValue::make_capsule(c10::make_intrusive<RanksHolder>(ranks));
}

using Exchange = at::Tensor (*)(Communicator&, const at::Tensor&);

// An exchange is a permutation of values over ranks: its backward is the way back.
template <Exchange there, Exchange back>
struct Permutation : torch::autograd::Function<Permutation<there, back>> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Communicator* ranks) {
    keep_ranks(context, *ranks);
    return there(*ranks, x);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {back(ranks_of(context), gradients[0]), {}};
  }
};
using ToHeads = Permutation<tokens_to_heads, heads_to_tokens>;
using ToTokens = Permutation<heads_to_tokens, tokens_to_heads>;

struct GatherTokens : torch::autograd::Function<GatherTokens> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_BSE, Communicator* ranks) {
    keep_ranks(context, *ranks);
    const at::Tensor in = x_BSE.contiguous();
    std::vector<int64_t> shape = in.sizes().vec();
    shape.insert(shape.begin(), ranks->size());
    const at::Tensor all_PBSE = at::empty(shape, in.options());
    ranks->all_gather(in, all_PBSE)->wait();
    return all_PBSE.transpose(0, 1).flatten(1, 2);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Communicator& ranks = ranks_of(context);
    return {gradients[0].chunk(ranks.size(), 1)[size_t(ranks.rank())], {}};
  }
};

class Ulysses final : public model::SequenceParallel {
 public:
  explicit Ulysses(Communicator& ranks) : ranks_(ranks) {}
  int64_t size() const override { return ranks_.size(); }
  int64_t rank() const override { return ranks_.rank(); }
  at::Tensor to_heads(const at::Tensor& x_BSND) override { return ToHeads::apply(x_BSND, &ranks_); }
  at::Tensor to_tokens(const at::Tensor& x_BSND) override { return ToTokens::apply(x_BSND, &ranks_); }
  at::Tensor gather_tokens(const at::Tensor& x_BSE) override { return GatherTokens::apply(x_BSE, &ranks_); }

 private:
  Communicator& ranks_;
};

}  // namespace

std::unique_ptr<model::SequenceParallel> make_ulysses(Communicator& ranks) {
  return std::make_unique<Ulysses>(ranks);
}

void check_sequence(const RootConfig& config) {
  const int64_t ranks = config.parallel.sequence, heads = config.model.heads;
  if (ranks == 1) return;
  std::vector<int64_t> fitting;
  for (int64_t n = 1; n <= heads; ++n)
    if (heads % n == 0) fitting.push_back(n);
  VMOBA_CHECK_INPUT(heads % ranks == 0,
                    "parallel.sequence: expected a divisor of model.heads ({}), found {}; use one of {}", heads, ranks,
                    fmt::join(fitting, ", "));
  const std::string& pool = config.attention.pool;
  VMOBA_CHECK_INPUT(
      config.attention.backend == "full" || pool == "head_global" || pool == "query_head",
      "parallel.sequence: expected a selection that each head makes on its own (attention.pool head_global "
      "or query_head), found {} with {} ranks to share the heads; change the pool or use "
      "parallel.sequence=1",
      pool, ranks);
}

}  // namespace vmoba::train::dist
