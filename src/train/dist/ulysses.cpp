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

// An exchange is a permutation of values over ranks: its backward is the way back. Tensors under way [P, B, S, n, D]
// are cut by the rank that they come from or go to.
struct Exchange : torch::CustomClassHolder {
  explicit Exchange(Communicator& ranks) : ranks(ranks) {}

  at::Tensor begin(const at::Tensor& slices_PBSnD) {
    const at::Tensor in = slices_PBSnD.contiguous(), out = at::empty_like(in);
    work = ranks.all_to_all(in, out);
    return out;
  }
  void wait() {
    work->wait();
    work.reset();
  }

  Communicator& ranks;
  WorkPtr work;
};
using ExchangePtr = c10::intrusive_ptr<Exchange>;

// The same values in units of 16 bytes where they allow it: ATen's strided copies move one unit for each thread.
at::Tensor in_wide_units(const at::Tensor& x) {
  const int64_t per_unit = 16 / x.element_size();
  bool fits = x.is_cuda() && x.stride(-1) == 1 && x.size(-1) % per_unit == 0 && x.storage_offset() % per_unit == 0;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) fits = fits && x.stride(d) % per_unit == 0;
  return fits ? x.view(at::kComplexDouble) : x;
}

at::Tensor heads_by_rank(const at::Tensor& x_BSND, int64_t ranks) {
  return in_wide_units(x_BSND)
      .unflatten(2, {ranks, -1})
      .permute({2, 0, 1, 3, 4})
      .contiguous()
      .view(x_BSND.scalar_type());
}
at::Tensor join_heads(const at::Tensor& x_PBSnD) {
  return in_wide_units(x_PBSnD).permute({1, 2, 0, 3, 4}).flatten(2, 3).view(x_PBSnD.scalar_type());
}
at::Tensor tokens_by_rank(const at::Tensor& x_BSnD, int64_t ranks) {
  return x_BSnD.unflatten(1, {ranks, -1}).permute({1, 0, 2, 3, 4});
}
at::Tensor join_tokens(const at::Tensor& x_PBSnD) {
  return x_PBSnD.permute({1, 0, 2, 3, 4}).flatten(1, 2);
}

void keep(AutogradContext* context, const ExchangePtr& exchange) {
  context->saved_data["exchange"] = c10::IValue::make_capsule(exchange);
}
Exchange& exchange_of(AutogradContext* context) {
  return static_cast<Exchange&>(*context->saved_data["exchange"].toCapsule());
}

// The tensor that the two functions pass between them has no values before the wait, forward and backward.
struct BeginToHeads : torch::autograd::Function<BeginToHeads> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_BSND, const ExchangePtr& exchange) {
    keep(context, exchange);
    return exchange->begin(heads_by_rank(x_BSND, exchange->ranks.size()));
  }
  static variable_list backward(AutogradContext* context, const variable_list& under_way) {
    exchange_of(context).wait();
    return {join_heads(under_way[0]), {}};
  }
};
struct EndToHeads : torch::autograd::Function<EndToHeads> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& under_way, const ExchangePtr& exchange) {
    keep(context, exchange);
    exchange->wait();
    return under_way.view_as(under_way);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {exchange_of(context).begin(gradients[0]), {}};
  }
};

struct ToTokens : torch::autograd::Function<ToTokens> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_BSnD, const ExchangePtr& exchange) {
    keep(context, exchange);
    const at::Tensor out_PBSnD = exchange->begin(tokens_by_rank(x_BSnD, exchange->ranks.size()));
    exchange->wait();
    return join_heads(out_PBSnD);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    Exchange& exchange = exchange_of(context);
    const at::Tensor out_PBSnD = exchange.begin(heads_by_rank(gradients[0], exchange.ranks.size()));
    exchange.wait();
    return {join_tokens(out_PBSnD), {}};
  }
};

class Heads final : public model::HeadsUnderWay {
 public:
  Heads(Communicator& ranks, const at::Tensor& x_BSND)
      : exchange_(c10::make_intrusive<Exchange>(ranks)), under_way_(BeginToHeads::apply(x_BSND, exchange_)) {}
  at::Tensor wait() override { return join_tokens(EndToHeads::apply(under_way_, exchange_)); }

 private:
  ExchangePtr exchange_;
  at::Tensor under_way_;
};

struct GatherTokens : torch::autograd::Function<GatherTokens> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_BSE, Communicator* ranks) {
    context->saved_data["ranks"] = int64_t(ranks->size());
    context->saved_data["rank"] = int64_t(ranks->rank());
    const at::Tensor in = x_BSE.contiguous();
    std::vector<int64_t> shape = in.sizes().vec();
    shape.insert(shape.begin(), ranks->size());
    const at::Tensor all_PBSE = at::empty(shape, in.options());
    ranks->all_gather(in, all_PBSE)->wait();
    return all_PBSE.transpose(0, 1).flatten(1, 2);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const int64_t ranks = context->saved_data["ranks"].toInt(), rank = context->saved_data["rank"].toInt();
    return {gradients[0].chunk(ranks, 1)[size_t(rank)], {}};
  }
};

class Ulysses final : public model::SequenceParallel {
 public:
  explicit Ulysses(Communicator& ranks) : ranks_(ranks) {}
  int64_t size() const override { return ranks_.size(); }
  int64_t rank() const override { return ranks_.rank(); }
  std::unique_ptr<model::HeadsUnderWay> begin_to_heads(const at::Tensor& x_BSND) override {
    return std::make_unique<Heads>(ranks_, x_BSND);
  }
  at::Tensor to_tokens(const at::Tensor& x_BSND) override {
    return ToTokens::apply(x_BSND, c10::make_intrusive<Exchange>(ranks_));
  }
  at::Tensor gather_tokens(const at::Tensor& x_BSE) override { return GatherTokens::apply(x_BSE, &ranks_); }

 private:
  Communicator& ranks_;
};

}  // namespace

std::unique_ptr<model::SequenceParallel> make_ulysses(Communicator& ranks) {
  return std::make_unique<Ulysses>(ranks);
}

}  // namespace vmoba::train::dist
