#include "train/dist/mpi_communicator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/check.h"

namespace vmoba::train::dist {
namespace {

// Below this an all_reduce takes one round of whole tensors in place of two rounds of slices.
constexpr int64_t kSmallBytes = 16 << 10;

// out[i] = ((pieces[0][i] + pieces[1][i]) + pieces[2][i]) + ...; `out` may be one of the pieces. Own loops and not
// ATen's: the engine's thread must not open thread pools of its own.
template <typename Value, typename Sum>
void add_in_order(const std::vector<const void*>& pieces, void* out, int64_t count) {
  constexpr int64_t kBlock = 512;
  std::array<Sum, kBlock> sums;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t length = std::min(kBlock, count - begin);
    const Value* first = static_cast<const Value*>(pieces[0]) + begin;
    for (int64_t i = 0; i < length; ++i) sums[size_t(i)] = Sum(first[i]);
    for (size_t p = 1; p < pieces.size(); ++p) {
      const Value* next = static_cast<const Value*>(pieces[p]) + begin;
      for (int64_t i = 0; i < length; ++i) sums[size_t(i)] += Sum(next[i]);
    }
    Value* into = static_cast<Value*>(out) + begin;
    for (int64_t i = 0; i < length; ++i) into[i] = Value(sums[size_t(i)]);
  }
}

void add_in_order(at::ScalarType dtype, const std::vector<const void*>& pieces, void* out, int64_t count) {
  switch (dtype) {
    case at::kFloat:
      return add_in_order<float, float>(pieces, out, count);
    case at::kDouble:
      return add_in_order<double, double>(pieces, out, count);
    case at::kBFloat16:
      return add_in_order<c10::BFloat16, float>(pieces, out, count);
    case at::kLong:
      return add_in_order<int64_t, int64_t>(pieces, out, count);
    default:
      throw_runtime("expected fp32, fp64, bf16 or int64 for a sum over ranks, found {}", c10::toString(dtype));
  }
}

char* at_element(const at::Tensor& values, int64_t element) {
  return static_cast<char*>(values.data_ptr()) + element * int64_t(values.element_size());
}

void copy_elements(const at::Tensor& in, int64_t in_begin, const at::Tensor& out, int64_t out_begin, int64_t count) {
  if (count == 0) return;  // empty tensors have null pointers, which memcpy must not get
  std::memcpy(at_element(out, out_begin), at_element(in, in_begin), size_t(count) * in.element_size());
}

void check_summable(const at::Tensor& values) {
  const at::ScalarType dtype = values.scalar_type();
  VMOBA_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kLong,
              "expected fp32, fp64, bf16 or int64 for a sum over ranks, found {}", c10::toString(dtype));
}

// What queued operations need of a group; they may outlive its communicator.
struct Group {
  MpiEngine& engine;
  std::vector<int> world_ranks;
  MPI_Comm mpi;  // until MPI_Finalize
  int rank = 0;

  int size() const { return int(world_ranks.size()); }
  // Calls `visit(peer)` for every other rank, beginning behind this one so that not all talk to the same.
  template <typename Visit>
  void for_each_peer(Visit visit) const {
    for (int k = 1; k < size(); ++k) visit((rank + k) % size());
  }
  // Elements begin .. end - 1.
  void send(Exchange& messages, const at::Tensor& values, int64_t begin, int64_t end, int to) const {
    messages.send(at_element(values, begin), (end - begin) * int64_t(values.element_size()), to, mpi);
  }
  void receive(Exchange& messages, const at::Tensor& values, int64_t begin, int64_t end, int from) const {
    messages.receive(at_element(values, begin), (end - begin) * int64_t(values.element_size()), from,
                     world_ranks[size_t(from)], mpi);
  }
  WorkPtr submit(const char* operation, const at::Tensor& values, std::vector<Stage> stages) const {
    return engine.submit(fmt::format("{} of {} {} values over {} ranks", operation, values.numel(),
                                     c10::toString(values.scalar_type()), size()),
                         std::move(stages));
  }
};

struct Range {
  int64_t begin, end;  // elements
  int64_t length() const { return end - begin; }
};

Range range_of(int64_t count, int rank, int size) {
  const int64_t part = (count + size - 1) / size;
  return {std::min(count, part * rank), std::min(count, part * (rank + 1))};
}

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(std::shared_ptr<const Group> group) : group_(std::move(group)) {}

  int rank() const override { return group_->rank; }
  int size() const override { return group_->size(); }
  WorkPtr all_reduce(const at::Tensor& values) override;
  WorkPtr reduce_scatter(const at::Tensor& in, const at::Tensor& out) override;
  WorkPtr all_gather(const at::Tensor& in, const at::Tensor& out) override;
  WorkPtr all_to_all(const at::Tensor& in, const at::Tensor& out) override;
  WorkPtr broadcast(const at::Tensor& values, int root) override;

 private:
  std::shared_ptr<const Group> group_;
};

// Stage: everyone's elements `range_of_rank(r)` of `values` go to rank r; row p of `others` is what rank p sent.
template <typename RangeOf>
Stage scatter_stage(std::shared_ptr<const Group> g, at::Tensor values, at::Tensor others, RangeOf range_of_rank) {
  return [=](Exchange& messages) {
    const int64_t length = others.size(1);
    g->for_each_peer([&](int peer) { g->receive(messages, others, peer * length, (peer + 1) * length, peer); });
    g->for_each_peer([&](int peer) {
      const Range range = range_of_rank(peer);
      g->send(messages, values, range.begin, range.end, peer);
    });
  };
}

// out[0 .. length) <- this rank's elements of `values` from `begin` plus the others' rows, in the order of the ranks.
void add_rows(const Group& g, const at::Tensor& values, int64_t begin, const at::Tensor& others, void* out) {
  const int64_t length = others.size(1);
  std::vector<const void*> pieces;
  for (int r = 0; r < g.size(); ++r)
    pieces.push_back(r == g.rank ? at_element(values, begin) : at_element(others, r * length));
  add_in_order(values.scalar_type(), pieces, out, length);
}

WorkPtr MpiCommunicator::all_reduce(const at::Tensor& values) {
  check_exchange("all_reduce", values, 1, values, 1);
  check_summable(values);
  const auto g = group_;
  const bool small = int64_t(values.nbytes()) <= kSmallBytes;
  const auto range = [small, count = values.numel(), size = size()](int rank) {
    return small ? Range{0, count} : range_of(count, rank, size);
  };
  const Range own = range(rank());
  const at::Tensor others = at::empty({size(), own.length()}, values.options());
  const Stage sum = [=](Exchange& messages) {
    add_rows(*g, values, own.begin, others, at_element(values, own.begin));
    if (small) return;
    g->for_each_peer([&](int peer) { g->receive(messages, values, range(peer).begin, range(peer).end, peer); });
    g->for_each_peer([&](int peer) { g->send(messages, values, own.begin, own.end, peer); });
  };
  return g->submit("all_reduce", values, {scatter_stage(g, values, others, range), sum});
}

WorkPtr MpiCommunicator::reduce_scatter(const at::Tensor& in, const at::Tensor& out) {
  check_exchange("reduce_scatter", in, size(), out, 1);
  check_summable(in);
  const auto g = group_;
  const int64_t length = out.numel();
  const at::Tensor others = at::empty({size(), length}, in.options());
  const auto range = [length](int rank) { return Range{rank * length, (rank + 1) * length}; };
  const Stage sum = [=](Exchange&) { add_rows(*g, in, g->rank * length, others, at_element(out, 0)); };
  return g->submit("reduce_scatter", in, {scatter_stage(g, in, others, range), sum});
}

WorkPtr MpiCommunicator::all_gather(const at::Tensor& in, const at::Tensor& out) {
  check_exchange("all_gather", in, 1, out, size());
  const Stage stage = [=, g = group_](Exchange& messages) {
    const int64_t length = in.numel();
    g->for_each_peer([&](int peer) { g->receive(messages, out, peer * length, (peer + 1) * length, peer); });
    g->for_each_peer([&](int peer) { g->send(messages, in, 0, length, peer); });
    copy_elements(in, 0, out, g->rank * length, length);
  };
  return group_->submit("all_gather", in, {stage});
}

WorkPtr MpiCommunicator::all_to_all(const at::Tensor& in, const at::Tensor& out) {
  check_exchange("all_to_all", in, size(), out, size());
  const Stage stage = [=, g = group_](Exchange& messages) {
    const int64_t length = in.numel() / g->size(), own = g->rank * length;
    g->for_each_peer([&](int peer) { g->receive(messages, out, peer * length, (peer + 1) * length, peer); });
    g->for_each_peer([&](int peer) { g->send(messages, in, peer * length, (peer + 1) * length, peer); });
    copy_elements(in, own, out, own, length);
  };
  return group_->submit("all_to_all", in, {stage});
}

WorkPtr MpiCommunicator::broadcast(const at::Tensor& values, int root) {
  check_exchange("broadcast", values, 1, values, 1);
  VMOBA_CHECK(root >= 0 && root < size(), "broadcast: expected a root below {}, found {}", size(), root);
  const Stage stage = [=, g = group_](Exchange& messages) {
    if (g->rank != root) return g->receive(messages, values, 0, values.numel(), root);
    g->for_each_peer([&](int peer) { g->send(messages, values, 0, values.numel(), peer); });
  };
  return group_->submit("broadcast", values, {stage});
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MpiEngine& engine, const std::vector<int>& world_ranks) {
  MPI_Comm mpi = MPI_COMM_NULL;
  int place_in_group = 0;
  engine.run("making a group of ranks", [&] {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    const auto place = std::find(world_ranks.begin(), world_ranks.end(), rank);
    VMOBA_CHECK(place != world_ranks.end(), "expected rank {} in its own group, found it missing", rank);
    place_in_group = int(place - world_ranks.begin());
    // Groups are told apart by their first rank, which no two of them share.
    MPI_Comm_split(MPI_COMM_WORLD, world_ranks.front(), place_in_group, &mpi);
    MPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN);
  });
  return std::make_unique<MpiCommunicator>(
      std::make_shared<const Group>(Group{engine, world_ranks, mpi, place_in_group}));
}

}  // namespace vmoba::train::dist
