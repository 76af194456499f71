// Parameters held together: parts, whole ones from them, sums of gradients, and the memory that a rank needs.
#include "train/dist/sharded_weights.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/autograd/autograd.h>

#include <mutex>
#include <numeric>
#include <unordered_map>

#include "support/catch.h"
#include "train/dist/dist_world.h"
#include "train/dist/nccl_communicator.h"
#include "train/dist/rank_device.h"

using namespace vmoba;
using namespace vmoba::train::dist;
using test::world;

namespace {

// Two units of three parameters whose sizes few numbers of ranks divide; values count up from 1.
struct Held {
  std::vector<at::Tensor> whole;
  std::vector<model::StoredParameter> parameters;
  Held(const ShardedWeights& shards, at::Device device, bool trained) {
    const std::vector<std::vector<int64_t>> shapes = {{3, 5}, {7}, {1}};
    for (const auto& shape : shapes) {
      const int64_t count = c10::multiply_integers(shape);
      whole.push_back(at::arange(1, count + 1, at::TensorOptions(at::kFloat).device(device)).view(shape));
      parameters.push_back({shards.keep(whole.back()).requires_grad_(trained), shape, shape.size() == 2});
    }
  }
  std::vector<at::Tensor> parts() const {
    std::vector<at::Tensor> out;
    for (const auto& p : parameters) out.push_back(p.part);
    return out;
  }
};

void check_fp8_factors(Communicator& ranks, at::Device device) {
  const auto alone = make_single_communicator();
  ShardedWeights shards(ranks, *alone);
  const auto options = at::TensorOptions(at::kFloat).device(device);
  const int64_t rows = 4 * ranks.size(), few = ranks.size() + 1;
  // Rows of other magnitudes: row r is 2^r (1, 1 + 1/32, 1 + 2/32, ...). Of e4m3's 3 bits the nearest even ones stay.
  const std::vector<float> nearest = {0, 0, 0, 4, 4, 4, 8, 8, 8, 8, 8, 12, 12, 12, 16, 16};
  const at::Tensor columns = 1 + at::arange(16, options) / 32, rounded = 1 + at::tensor(nearest, options) / 32;
  const at::Tensor powers = at::pow(2, at::arange(rows, options)).view({rows, 1});
  const at::Tensor whole = powers * columns, odd = at::full({few, 16}, 1.03125f, options);
  const std::vector<at::Tensor> parts = {shards.keep(whole), shards.keep(odd)};
  shards.add_unit({{parts[0], {rows, 16}, true, true}, {parts[1], {few, 16}, true, true}});
  const auto found = shards.gather(0, parts, at::kBFloat16, false);
  CHECK(found[0].scalar_type() == at::kBFloat16);
  CHECK(at::equal(found[0].to(at::kFloat), powers * rounded));
  if (ranks.size() > 1) CHECK(at::equal(found[1].to(at::kFloat), odd));  // parts of rows travel as they are used
}

void check_gather_and_sum(Communicator& ranks, at::Device device, int64_t values_per_unit = 1, bool keep = false) {
  const auto alone = make_single_communicator();
  ShardedWeights shards(ranks, *alone, values_per_unit);
  shards.keep_gathered(keep);
  const Held held(shards, device, true), later(shards, device, true);
  for (const at::Tensor& part : held.parts()) CHECK(part.numel() % values_per_unit == 0);
  REQUIRE(shards.add_unit(held.parameters) == 0);
  REQUIRE(shards.add_unit(later.parameters) == 1);
  for (int step = 0; step < 2; ++step) {
    shards.begin_step();
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) shards.begin_last_pass();
      const auto first = shards.gather(0, held.parts(), at::kBFloat16, false);
      const auto second = shards.gather(1, later.parts(), at::kBFloat16, false);
      at::Tensor loss = at::zeros({}, at::TensorOptions(at::kFloat).device(device));
      for (size_t i = 0; i < first.size(); ++i) {
        CHECK(first[i].scalar_type() == (i == 0 ? at::kBFloat16 : at::kFloat));
        CHECK(at::equal(first[i].to(at::kFloat), held.whole[i]));  // small integers are exact in bf16
        loss = loss + (first[i].to(at::kFloat) * held.whole[i]).sum() * double(ranks.rank() + 1);
      }
      loss = loss + second[1].sum();  // the others of the unit take no part
      loss.backward();
    }
    shards.finish();
    const double sum_of_ranks = 0.5 * ranks.size() * (ranks.size() + 1);
    for (size_t i = 0; i < held.whole.size(); ++i) {
      const at::Tensor expected = shards.keep(held.whole[i] * 2 * sum_of_ranks);
      CHECK(at::equal(held.parameters[i].part.grad(), expected));
      const double others = i == 1 ? 2.0 * ranks.size() : 0.0;
      CHECK(at::equal(later.parameters[i].part.grad(), shards.keep(at::full_like(later.whole[i], others))));
    }
  }
  CHECK(shards.early_gathers() == (keep ? 2 : 4));  // of unit 1: in each step, or in each pass
}

// Counts the bytes of CPU tensors while it lives. One at a time.
class CountingAllocator final : public at::Allocator {
 public:
  CountingAllocator() { c10::SetCPUAllocator(this); }
  ~CountingAllocator() override { c10::SetCPUAllocator(c10::GetDefaultCPUAllocator()); }
  at::DataPtr allocate(size_t bytes) override {
    void* memory = c10::alloc_cpu(bytes);
    const std::lock_guard lock(count().mutex);
    count().bytes_of[memory] = int64_t(bytes);
    count().bytes += int64_t(bytes);
    count().peak = std::max(count().peak, count().bytes);
    return {memory, memory, raw_deleter(), at::kCPU};
  }
  at::DeleterFnPtr raw_deleter() const override { return &free_counted; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  int64_t peak_bytes() const { return count().peak; }
  void forget_peak() { count().peak = count().bytes; }

 private:
  struct Count {
    std::mutex mutex;
    std::unordered_map<void*, int64_t> bytes_of;
    int64_t bytes = 0, peak = 0;
  };
  static Count& count() {  // tensors may outlive the allocator
    static Count counts;
    return counts;
  }
  static void free_counted(void* memory) {
    const std::lock_guard lock(count().mutex);
    count().bytes -= count().bytes_of[memory];
    count().bytes_of.erase(memory);
    c10::free_cpu(memory);
  }
};

}  // namespace

TEST_CASE("fp8 factors arrive as the values that they stand for, where ranks hold whole rows", "[mpi]") {
  check_fp8_factors(world().control(), at::kCPU);
}

TEST_CASE("two gathered units exist at most, and gradients of one", "[mpi]") {
  Communicator& ranks = world().control();
  const auto alone = make_single_communicator();
  constexpr int64_t kUnits = 5, kValues = 1 << 20;
  const int64_t part = (kValues + ranks.size() - 1) / ranks.size();
  const int64_t whole_bytes = 4 * part * ranks.size(), part_bytes = 4 * part;
  CountingAllocator memory;
  for (const bool trained : {false, true}) {
    INFO(ranks.size() << " ranks, " << (trained ? "trained" : "frozen"));
    ShardedWeights shards(ranks, *alone);
    std::vector<at::Tensor> parts;
    for (int64_t u = 0; u < kUnits; ++u) {
      parts.push_back(shards.keep(at::full({kValues}, double(u))).requires_grad_(trained));
      shards.add_unit({{parts.back(), {kValues}, false}});
    }
    shards.begin_step();
    shards.begin_last_pass();
    const int64_t before = memory.peak_bytes();
    memory.forget_peak();
    const int64_t held = memory.peak_bytes();
    REQUIRE(held <= before);
    for (int64_t u = 1; u < kUnits; ++u) shards.gather(size_t(u), {parts[size_t(u)].detach()}, at::kFloat, false);
    // The unit at hand, the next one and what this rank sends of it.
    CHECK(memory.peak_bytes() - held <= 2 * whole_bytes + part_bytes + 10000);
    CHECK(memory.peak_bytes() - held > 2 * whole_bytes);
    if (!trained) continue;
    for (int64_t u = kUnits - 1; u > 0; --u) {
      const auto whole = shards.gather(size_t(u), {parts[size_t(u)]}, at::kFloat, true);
      torch::autograd::backward({whole[0]}, {at::ones({kValues})});
    }
    // And its gradients, the same as rows for the ranks, the part that comes back; MPI's own buffer is as large as the
    // rows.
    CHECK(memory.peak_bytes() - held <= 5 * whole_bytes + 2 * part_bytes + 10000);
    shards.finish();
    CHECK(at::equal(parts[1].grad(), shards.keep(at::full({kValues}, double(ranks.size())))));
  }
}

TEST_CASE("whole parameters come from their parts, gradients go to them", "[mpi]") {
  check_gather_and_sum(world().control(), at::kCPU);
}

TEST_CASE("a step that keeps what it gathers gives the same parameters and sums", "[mpi]") {
  check_gather_and_sum(world().control(), at::kCPU, 1, /*keep=*/true);
}

TEST_CASE("kept parameters are those of the step, and of no weights after it", "[mpi]") {
  const auto alone = make_single_communicator();
  ShardedWeights shards(world().control(), *alone);
  const Held held(shards, at::kCPU, true);
  shards.add_unit(held.parameters);
  CHECK(shards.gathered_bytes(at::kBFloat16) == 2 * 15 + 4 * (7 + 1));
  const auto first_value = [&](bool again) {
    return shards.gather(0, held.parts(), at::kFloat, again)[0].flatten()[0].item<float>();
  };
  const auto add_one = [&] {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& part : held.parts()) part.add_(1);
  };
  shards.keep_gathered(true);
  shards.begin_step();
  CHECK(first_value(false) == 1);
  add_one();
  CHECK(first_value(true) == 1);  // kept
  shards.drop_gathered();
  CHECK(first_value(false) == 2);
  add_one();
  CHECK(first_value(false) == 3);  // between steps nothing is kept
  shards.begin_step();
  CHECK(first_value(false) == 3);
  add_one();
  shards.finish();
  CHECK(first_value(false) == 4);
}

TEST_CASE("parts of whole runs of values give the same parameters and sums", "[mpi]") {
  check_gather_and_sum(world().control(), at::kCPU, 4);
}

TEST_CASE("the same over NCCL on one GPU", "[gpu]") {
  const at::Device device(at::kCUDA, 0);
  const auto alone = make_single_communicator();
  OperationWatch watch;
  const auto ranks = make_nccl_communicator(*alone, device, watch, {0});
  check_gather_and_sum(*ranks, device);
  check_fp8_factors(*ranks, device);
}

TEST_CASE("fp8 factors over NCCL between GPUs", "[.gpus]") {
  if (world().size() == 1) return;  // brought in by an exclusion
  const at::Device device = device_of_rank(at::Device(at::kCUDA), world());
  std::vector<int> everyone(size_t(world().size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  const auto control = world().make_group(everyone);
  check_fp8_factors(*make_nccl_communicator(*control, device, world().device_watch(), everyone), device);
}

TEST_CASE("frozen parameters travel in the type that they are kept in, fp8 too", "[mpi]") {
  const auto alone = make_single_communicator();
  ShardedWeights shards(world().control(), *alone);
  std::vector<at::Tensor> whole, parts;
  std::vector<model::StoredParameter> unit;
  for (const at::ScalarType dtype : {at::kFloat8_e4m3fn, at::kBFloat16, at::kFloat}) {
    whole.push_back(at::arange(1, 16, at::kFloat).view({3, 5}).to(dtype));
    parts.push_back(shards.keep(whole.back()));
    unit.push_back({parts.back(), {3, 5}, true});
  }
  shards.add_unit(unit);
  const auto back = shards.gather(0, parts, at::kBFloat16, false);
  for (size_t i = 0; i < back.size(); ++i) {
    CHECK(back[i].scalar_type() == (i == 0 ? at::kFloat8_e4m3fn : at::kBFloat16));
    CHECK(at::equal(back[i].to(at::kFloat), whole[i].to(at::kFloat)));
    CHECK_FALSE(back[i].requires_grad());
  }
}
