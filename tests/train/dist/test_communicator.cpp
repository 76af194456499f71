// Every operation against arithmetic, for each dtype, odd sizes and groups. [mpi] cases run on any number of ranks.
#include "train/dist/communicator.h"

#include <ATen/ATen.h>

#include <memory>
#include <numeric>

#include "support/catch.h"
#include "support/messages.h"
#include "train/dist/dist_world.h"
#include "train/dist/nccl_communicator.h"
#include "train/dist/rank_device.h"

using namespace vmoba;
using namespace vmoba::train::dist;
using test::world;

namespace {

// Values of rank r that differ between ranks and places, exact in every dtype.
at::Tensor values_of(int rank, int64_t count, at::ScalarType dtype) {
  return ((at::arange(count, at::kLong) * 7 + rank * 3) % 11 - 5).to(dtype);
}

void check_operations(Communicator& group, const at::TensorOptions& options, int64_t n) {
  const int rank = group.rank(), size = group.size();
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  const auto values = [&](int r, int64_t count) { return values_of(r, count, dtype).to(options.device()); };
  INFO("rank " << rank << " of " << size << ", " << n << " values of " << c10::toString(dtype));

  at::Tensor sum = at::zeros({n}, options);
  for (int r = 0; r < size; ++r) sum += values(r, n);
  const at::Tensor reduced = values(rank, n);
  group.all_reduce(reduced)->wait();
  CHECK(at::equal(reduced, sum));

  at::Tensor slices = at::zeros({size * n}, options);
  for (int r = 0; r < size; ++r) slices += values(r, size * n);
  const at::Tensor scattered = at::empty({n}, options);
  group.reduce_scatter(values(rank, size * n), scattered)->wait();
  CHECK(at::equal(scattered, slices.slice(0, rank * n, (rank + 1) * n)));

  std::vector<at::Tensor> everyone, exchanged;
  for (int r = 0; r < size; ++r) {
    everyone.push_back(values(r, n));
    exchanged.push_back(values(r, size * n).slice(0, rank * n, (rank + 1) * n));
  }
  const at::Tensor gathered = at::empty({size * n}, options), swapped = at::empty({size * n}, options);
  group.all_gather(values(rank, n), gathered)->wait();
  CHECK(at::equal(gathered, at::cat(everyone)));
  group.all_to_all(values(rank, size * n), swapped)->wait();
  CHECK(at::equal(swapped, at::cat(exchanged)));

  const int root = size - 1;
  const at::Tensor told = values(rank, n);
  group.broadcast(told, root)->wait();
  CHECK(at::equal(told, values(root, n)));
}

}  // namespace

TEST_CASE("a group of one copies") {
  const auto group = make_single_communicator();
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong})
    check_operations(*group, at::TensorOptions(dtype), 5);
}

TEST_CASE("tensors that do not fit an operation are refused") {
  const auto group = make_single_communicator();
  const auto message = [&](const at::Tensor& in, const at::Tensor& out) {
    return test::error_of(ErrorKind::kRuntime, [&] { group->all_gather(in, out); });
  };
  CHECK(test::contains(message(at::zeros({4, 4}).t(), at::zeros({16})), "contiguous"));
  CHECK(test::contains(message(at::zeros({4}), at::zeros({4}, at::kDouble)), "one dtype"));
  CHECK(test::contains(message(at::zeros({4}), at::zeros({5})), "slices of one size"));
}

TEST_CASE("every operation over MPI gives what arithmetic says", "[mpi]") {
  // Empty, one value, sizes that ranks do not divide, and one past the limit of small sums (16 KiB).
  for (const int64_t n : {0, 1, 7, 1000, 20001})
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong})
      check_operations(world().control(), at::TensorOptions(dtype), n);
}

TEST_CASE("sums are taken in the order of the ranks, once rounded", "[mpi]") {
  Communicator& ranks = world().control();
  const int size = ranks.size();
  // Where the order shows: magnitudes that differ by 2^24 and more.
  const auto value = [](int r, int64_t i) { return std::pow(-3.0, double((i * 5 + r * 7) % 23)); };
  for (const int64_t n : {33, 9001}) {
    at::Tensor mine = at::empty({n}, at::kFloat), expected = at::empty({n}, at::kFloat);
    for (int64_t i = 0; i < n; ++i) {
      mine.data_ptr<float>()[i] = float(value(ranks.rank(), i));
      float sum = float(value(0, i));
      for (int r = 1; r < size; ++r) sum += float(value(r, i));
      expected.data_ptr<float>()[i] = sum;
    }
    ranks.all_reduce(mine)->wait();
    CHECK(at::equal(mine, expected));
  }
  // 256 + 1 is 256 in bf16: added one by one in bf16, the ones would vanish.
  const at::Tensor ones = at::full({3}, ranks.rank() == 0 ? 256.0 : 1.0, at::kBFloat16);
  ranks.all_reduce(ones)->wait();
  const double exact = 256.0 + (size - 1);
  CHECK(ones[0].item<double>() == at::full({}, exact, at::kFloat).to(at::kBFloat16).item<double>());
}

TEST_CASE("operations that are under way together keep apart", "[mpi]") {
  Communicator& ranks = world().control();
  std::vector<at::Tensor> tensors;
  std::vector<WorkPtr> work;
  for (int i = 0; i < 20; ++i) {
    tensors.push_back(at::full({100 + i}, double(ranks.rank() + i), at::kDouble));
    work.push_back(ranks.all_reduce(tensors.back()));
  }
  const double ranks_sum = double(ranks.size() * (ranks.size() - 1)) / 2;
  for (int i = 19; i >= 0; --i) {
    work[size_t(i)]->wait();
    work[size_t(i)]->wait();  // again: nothing happens
    CHECK(at::equal(tensors[size_t(i)], at::full_like(tensors[size_t(i)], ranks_sum + i * ranks.size())));
  }
}

TEST_CASE("groups keep to their ranks", "[mpi]") {
  // Even and odd ranks, each in descending order.
  std::vector<int> mine;
  for (int r = world().size() - 1; r >= 0; --r)
    if (r % 2 == world().rank() % 2) mine.push_back(r);
  const auto group = world().make_group(mine);
  REQUIRE(group->size() == int(mine.size()));
  CHECK(mine[size_t(group->rank())] == world().rank());
  check_operations(*group, at::TensorOptions(at::kFloat), 13);
  const at::Tensor ids = at::full({1}, world().rank(), at::kLong);
  group->all_reduce(ids)->wait();
  CHECK(ids.item<int64_t>() == std::accumulate(mine.begin(), mine.end(), 0));
}

TEST_CASE("texts and numbers of all ranks", "[mpi]") {
  Communicator& ranks = world().control();
  const auto text_of = [](int r) { return std::string(size_t(r * 3), char('a' + r)); };
  const std::vector<std::string> texts = all_gather_text(ranks, text_of(ranks.rank()));
  REQUIRE(int(texts.size()) == ranks.size());
  for (int r = 0; r < ranks.size(); ++r) CHECK(texts[size_t(r)] == text_of(r));
}

TEST_CASE("every operation over NCCL on one GPU", "[gpu]") {
  const auto alone = make_single_communicator();
  OperationWatch watch;
  const auto group = make_nccl_communicator(*alone, at::Device(at::kCUDA, 0), watch, {0});
  for (const int64_t n : {1, 7, 20001})
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong})
      check_operations(*group, at::TensorOptions(dtype).device(at::kCUDA, 0), n);
}

TEST_CASE("every operation over NCCL between GPUs, groups beside each other", "[.gpus]") {
  World& world = test::world();
  if (world.size() == 1) return;  // brought in by an exclusion
  const at::Device device = device_of_rank(at::Device(at::kCUDA), world);
  std::vector<int> everyone(size_t(world.size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  std::vector<std::unique_ptr<Communicator>> control, groups;
  for (int g = 0; g < 3; ++g) {
    control.push_back(world.make_group(everyone));
    groups.push_back(make_nccl_communicator(*control.back(), device, world.device_watch(), everyone));
  }
  for (const int64_t n : {1, 7, 20001})
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong})
      check_operations(*groups.front(), at::TensorOptions(dtype).device(device), n);
  // Under way together and waited for in another order, with memory that is freed and used again while the host runs
  // ahead; some are never waited for.
  const at::TensorOptions fp32 = at::TensorOptions(at::kFloat).device(device);
  const double ranks_sum = double(world.size() * (world.size() - 1)) / 2;
  std::vector<at::Tensor> sums, expected;
  for (int round = 0; round < 200; ++round) {
    std::vector<at::Tensor> values, gathered;
    std::vector<WorkPtr> work;
    for (size_t g = 0; g < groups.size(); ++g) {
      const int64_t count = 100000 + 1000 * round + int64_t(g);
      values.push_back(at::full({count}, double(world.rank() + round) + double(g), fp32));
      gathered.push_back(at::empty({world.size() * count}, fp32));
      work.push_back(groups[g]->all_gather(values.back(), gathered.back()));
    }
    for (size_t g = groups.size(); g-- > size_t(round % 2);) {
      work[g]->wait();
      values[g].reset();
      sums.push_back(gathered[g].sum(at::kDouble) / double(gathered[g].numel() / world.size()));
      expected.push_back(at::full({}, ranks_sum + world.size() * (double(round) + double(g)), at::kDouble));
      gathered[g].reset();
    }
  }
  CHECK((at::stack(sums).cpu() - at::stack(expected)).abs().max().item<double>() < 1e-6);
}
