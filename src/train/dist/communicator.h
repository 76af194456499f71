// A group of ranks that exchange tensors. Three implementations behind one interface: MPI (CPU tensors), NCCL (CUDA
// tensors), and the group of one rank.
//
// Every operation is collective: all ranks of the group call the same operations in the same order with tensors of the
// same dtype and sizes. Tensors are contiguous; fp32, fp64, bf16, int64 (copies: any dtype). An operation returns at
// once with a handle; its tensors must not be touched before wait(). They are kept alive until then. wait() blocks the
// host over MPI; over NCCL it makes the current stream wait for the communication's side stream.
//
// Sums do not depend on timing: over MPI every element is added in the order of the ranks (bf16 in fp32, rounded
// once), so that all ranks and all runs get the same bits; NCCL repeats its bits for equal hardware and sizes.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

namespace vmoba::train::dist {

class Work {
 public:
  virtual ~Work() = default;
  // Returns when the result may be used; throws Error(kRuntime) where the operation failed. May be called again.
  virtual void wait() = 0;
};
using WorkPtr = std::shared_ptr<Work>;

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // in this group
  virtual int size() const = 0;

  // values <- sum of everyone's values.
  virtual WorkPtr all_reduce(const at::Tensor& values) = 0;
  // out [n] <- sum over ranks of slice number rank() of `in` [size * n].
  virtual WorkPtr reduce_scatter(const at::Tensor& in, const at::Tensor& out) = 0;
  // out [size * n] <- everyone's `in` [n], in the order of the ranks.
  virtual WorkPtr all_gather(const at::Tensor& in, const at::Tensor& out) = 0;
  // Slice r of `out` [size * n] <- slice rank() of rank r's `in` [size * n].
  virtual WorkPtr all_to_all(const at::Tensor& in, const at::Tensor& out) = 0;
  // values <- values of rank `root`.
  virtual WorkPtr broadcast(const at::Tensor& values, int root) = 0;
};

// The group of this process alone, for tensors of any device.
std::unique_ptr<Communicator> make_single_communicator();

// Everyone's bytes as one vector, rank after rank. For the control plane: small, CPU.
std::vector<std::string> all_gather_text(Communicator& ranks, const std::string& text);
// Everyone's values (the same number on every rank), rank after rank.
std::vector<double> all_gather_numbers(Communicator& ranks, const std::vector<double>& values);
// The least and the largest of everyone's values. On the group's device; waits for it.
double least_number(Communicator& ranks, const at::Device& device, double value);
double largest_number(Communicator& ranks, const at::Device& device, double value);
// Returns when every rank of the group has called it.
void barrier(Communicator& ranks);

// Throws Error(kRuntime) unless the tensors suit an operation over `parts` slices: contiguous, one dtype and device,
// sizes in / out as given multiples of each other.
void check_exchange(const char* operation, const at::Tensor& in, int64_t in_parts, const at::Tensor& out,
                    int64_t out_parts);

}  // namespace vmoba::train::dist
