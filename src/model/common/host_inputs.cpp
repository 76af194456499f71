#include "model/common/host_inputs.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <map>
#include <utility>

#include "model/common/side_stream.h"

namespace vmoba::model {

struct HostInputs::Shared {
  explicit Shared(at::Device device) : side(device) {}

  at::Tensor take_host(const at::Tensor& like) {
    const at::Tensor flat = like.view(-1);
    const auto found = free.find({flat.scalar_type(), flat.numel()});
    if (found != free.end() && !found->second.empty()) {
      at::Tensor out = std::move(found->second.back());
      found->second.pop_back();
      return out;
    }
    host_bytes += int64_t(flat.nbytes());
    return host_tensor(flat.sizes(), flat.scalar_type(), side.device());
  }
  // All copies from and to the host's memory run on one stream: who takes it next comes behind those before.
  void give_host(at::Tensor host) { free[{host.scalar_type(), host.numel()}].push_back(std::move(host)); }

  std::map<std::pair<at::ScalarType, int64_t>, std::vector<at::Tensor>> free;
  int64_t host_bytes = 0;
  SideStream side;
};

class HostInputs::Input {
 public:
  Input(std::shared_ptr<Shared> shared, const at::Tensor& x, std::weak_ptr<Input> before)
      : before_(std::move(before)),
        shared_(std::move(shared)),
        shape_(x.sizes().vec()),
        options_(x.options().requires_grad(false)),
        host_(shared_->take_host(x)),
        device_(x) {
    shared_->side.follow_current();
    shared_->side.copy(device_.view(-1), host_);
    copied_ = shared_->side.mark();
  }
  ~Input() {
    try {
      leave();
    } catch (const c10::Error&) {  // of a device that has failed: who computed there says so
    }
    shared_->give_host(std::move(host_));
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  // Gives up the memory on the device, behind the copy that uses it.
  void leave() {
    if (!device_.defined()) return;
    shared_->side.hold_current(copied_);
    device_.reset();
  }
  void begin_return() {
    if (device_.defined()) return;
    device_ = at::empty(shape_, options_);
    shared_->side.follow_current();  // whoever had this memory before
    shared_->side.copy(host_, device_.view(-1));
    copied_ = shared_->side.mark();
  }
  at::Tensor take() {
    begin_return();
    shared_->side.hold_current(copied_);
    return std::exchange(device_, at::Tensor());
  }
  std::shared_ptr<Input> before() const { return before_.lock(); }

 private:
  std::weak_ptr<Input> before_;
  std::shared_ptr<Shared> shared_;
  std::vector<int64_t> shape_;
  at::TensorOptions options_;
  at::Tensor host_, device_;
  SideStream::Mark copied_;
};

HostInputs::HostInputs(at::Device device) : shared_(std::make_shared<Shared>(device)) {}

void HostInputs::settle() {
  if (leaving_) leaving_->leave();
  leaving_.reset();
}

HostInputs::Handle HostInputs::put(const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  settle();
  leaving_ = std::make_shared<Input>(shared_, x.detach().contiguous(), latest_);
  latest_ = leaving_;
  return leaving_;
}

at::Tensor HostInputs::take(const Handle& input) {
  const at::NoGradGuard no_grad;
  if (leaving_ != input) settle();
  leaving_.reset();
  at::Tensor out = input->take();
  if (const Handle before = input->before()) before->begin_return();
  return out;
}

int64_t HostInputs::host_bytes() const {
  return shared_->host_bytes;
}

}  // namespace vmoba::model
