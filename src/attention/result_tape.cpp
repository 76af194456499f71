#include "attention/result_tape.h"

#include "core/check.h"

namespace vmoba::attention {

void ResultTape::record(std::vector<at::Tensor> results) {
  for (at::Tensor& tensor : results) tensors_.push_back(tensor.defined() ? tensor.detach() : tensor);
}

std::vector<at::Tensor> ResultTape::next(size_t count) {
  VMOBA_CHECK(replays_ && next_ + count <= tensors_.size(), "expected {} more recorded results, found {}", count,
              replays_ ? tensors_.size() - next_ : 0);
  std::vector<at::Tensor> out;
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor& tensor = tensors_[next_++];
    out.push_back(tensor.defined() ? tensor.detach() : tensor);  // another tensor, which may be given a history
  }
  return out;
}

}  // namespace vmoba::attention
