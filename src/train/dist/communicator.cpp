#include "train/dist/communicator.h"

#include <ATen/ATen.h>

#include <cstring>

#include "core/check.h"

namespace vmoba::train::dist {
namespace {

struct Done final : Work {
  void wait() override {}
};

class SingleCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  WorkPtr all_reduce(const at::Tensor&) override { return std::make_shared<Done>(); }
  WorkPtr reduce_scatter(const at::Tensor& in, const at::Tensor& out) override { return copy(in, out); }
  WorkPtr all_gather(const at::Tensor& in, const at::Tensor& out) override { return copy(in, out); }
  WorkPtr all_to_all(const at::Tensor& in, const at::Tensor& out) override { return copy(in, out); }
  WorkPtr broadcast(const at::Tensor&, int) override { return std::make_shared<Done>(); }

 private:
  static WorkPtr copy(const at::Tensor& in, const at::Tensor& out) {
    const at::NoGradGuard no_grad;
    check_exchange("a group of one", in, 1, out, 1);
    out.view(-1).copy_(in.view(-1));
    return std::make_shared<Done>();
  }
};

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<SingleCommunicator>();
}

void check_exchange(const char* operation, const at::Tensor& in, int64_t in_parts, const at::Tensor& out,
                    int64_t out_parts) {
  VMOBA_CHECK(
      in.is_contiguous() && out.is_contiguous() && in.scalar_type() == out.scalar_type() && in.device() == out.device(),
      "{}: expected contiguous tensors of one dtype and device, found {} on {} and {} on {}", operation,
      c10::toString(in.scalar_type()), in.device().str(), c10::toString(out.scalar_type()), out.device().str());
  VMOBA_CHECK(
      in.numel() % in_parts == 0 && out.numel() % out_parts == 0 && in.numel() / in_parts == out.numel() / out_parts,
      "{}: expected {} and {} slices of one size, found {} and {} elements", operation, in_parts, out_parts, in.numel(),
      out.numel());
}

std::vector<std::string> all_gather_text(Communicator& ranks, const std::string& text) {
  const std::vector<double> sizes = all_gather_numbers(ranks, {double(text.size())});
  int64_t longest = 1;
  for (const double size : sizes) longest = std::max(longest, int64_t(size));
  const at::Tensor mine = at::zeros({longest}, at::kByte), all = at::empty({ranks.size() * longest}, at::kByte);
  std::memcpy(mine.mutable_data_ptr(), text.data(), text.size());
  ranks.all_gather(mine, all)->wait();
  std::vector<std::string> out;
  for (size_t r = 0; r < sizes.size(); ++r)
    out.emplace_back(static_cast<const char*>(all.const_data_ptr()) + int64_t(r) * longest, size_t(sizes[r]));
  return out;
}

std::vector<double> all_gather_numbers(Communicator& ranks, const std::vector<double>& values) {
  const auto count = int64_t(values.size());
  const at::Tensor mine = at::empty({count}, at::kDouble), all = at::empty({ranks.size() * count}, at::kDouble);
  std::memcpy(mine.mutable_data_ptr(), values.data(), values.size() * sizeof(double));
  ranks.all_gather(mine, all)->wait();
  const double* begin = all.const_data_ptr<double>();
  return {begin, begin + all.numel()};
}

double least_number(Communicator& ranks, const at::Device& device, double value) {
  const at::Tensor mine = at::full({1}, value, at::TensorOptions(device).dtype(at::kDouble));
  const at::Tensor all = at::empty({ranks.size()}, mine.options());
  ranks.all_gather(mine, all)->wait();
  return all.min().item<double>();
}

double largest_number(Communicator& ranks, const at::Device& device, double value) {
  return -least_number(ranks, device, -value);
}

void barrier(Communicator& ranks) {
  all_gather_numbers(ranks, {0});
}

}  // namespace vmoba::train::dist
