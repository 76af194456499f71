#include "model/common/weight_ring.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace vmoba::model {
namespace {

constexpr int64_t kAlignment = 256;  // of a tensor within a slot

int64_t room_of(const at::Tensor& tensor) {
  return (int64_t(tensor.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t room_of(const std::vector<at::Tensor>& tensors) {
  int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += room_of(tensor);
  return bytes;
}

// `host`'s place in the slot, as tensors of its kind.
std::vector<at::Tensor> views_in(const at::Tensor& slot, const std::vector<at::Tensor>& host) {
  std::vector<at::Tensor> out;
  int64_t begin = 0;
  for (const at::Tensor& tensor : host) {
    out.push_back(slot.narrow(0, begin, int64_t(tensor.nbytes())).view(tensor.scalar_type()).view(tensor.sizes()));
    begin += room_of(tensor);
  }
  return out;
}

}  // namespace

size_t RingSlots::add(std::vector<at::Tensor> host) {
  slot_bytes_ = std::max(slot_bytes_, room_of(host));
  units_.push_back(std::move(host));
  return units_.size() - 1;
}

size_t RingSlots::slot_with(size_t number) {
  for (size_t i = 0; i < slots_.size(); ++i)
    if (slots_[i].holds == number) return i;
  return slots_.size();
}

void RingSlots::begin_copy(size_t number, Slot& slot) {
  const std::vector<at::Tensor>& host = units_.at(number);
  slot.holds = kNobody;  // should something throw
  if (!slot.bytes.defined() || slot.bytes.numel() < slot_bytes_) {
    side_.hold_current(slot.ready);  // what may still be written is not to be reused
    slot.bytes.reset();
    slot.bytes = at::empty({slot_bytes_}, at::TensorOptions(at::kByte).device(side_.device()));
  }
  side_.follow_current();
  const std::vector<at::Tensor> views = views_in(slot.bytes, host);
  for (size_t i = 0; i < host.size(); ++i) side_.copy(host[i], views[i]);
  slot.ready = side_.mark();
  slot.holds = number;
  copies_ += 1;
}

// As many as have room, spread over all.
void RingSlots::make_residents() {
  const auto count = int64_t(units_.size());
  const int64_t fit = slot_bytes_ == 0 ? 0 : std::min(count, resident_bytes_ / slot_bytes_);
  resident_.resize(units_.size());
  for (int64_t i = 0; i < count; ++i) {
    if ((i + 1) * fit / count == i * fit / count) continue;
    const std::vector<at::Tensor>& host = units_[size_t(i)];
    at::Tensor& there = resident_[size_t(i)];
    there = at::empty({room_of(host)}, at::TensorOptions(at::kByte).device(side_.device()));
    const std::vector<at::Tensor> views = views_in(there, host);
    for (size_t t = 0; t < host.size(); ++t) views[t].copy_(host[t]);
  }
}

std::vector<at::Tensor> RingSlots::use(size_t number) {
  if (resident_.empty()) make_residents();
  if (resident(number)) return views_in(resident_[number], units_[number]);
  size_t place = slot_with(number);
  if (place == slots_.size()) {
    place = (at_work_ + 1) % slots_.size();
    begin_copy(number, slots_[place]);
  }
  at_work_ = place;
  side_.hold_current(slots_[place].ready);
  return views_in(slots_[place].bytes, units_[number]);
}

void RingSlots::prepare(size_t number) {
  if (resident(number)) return;
  if (slot_with(number) == slots_.size()) begin_copy(number, slots_[(at_work_ + 1) % slots_.size()]);
}

at::Tensor WeightRing::keep(const at::Tensor& whole) const {
  const at::NoGradGuard no_grad;
  at::Tensor out = host_tensor(whole.sizes(), whole.scalar_type(), slots_->device());
  out.copy_(whole.detach());
  return out;
}

size_t WeightRing::add_unit(std::vector<StoredParameter> parameters) {
  Unit unit;
  for (StoredParameter& parameter : parameters) unit.host.push_back(parameter.part.detach());
  if (!units_.empty()) unit.number = slots_->add(unit.host);
  units_.push_back(std::move(unit));
  return units_.size() - 1;
}

std::vector<at::Tensor> WeightRing::copies_of(const Unit& unit) const {
  std::vector<at::Tensor> out;
  for (const at::Tensor& host : unit.host)
    out.push_back(host.to(slots_->device(), host.scalar_type(), /*non_blocking=*/true, /*copy=*/true));
  return out;
}

std::vector<at::Tensor> WeightRing::gather(size_t number, at::TensorList parts, at::ScalarType /*compute_dtype*/,
                                           bool again) {
  for (const at::Tensor& part : parts)
    VMOBA_CHECK(!at::GradMode::is_enabled() || !part.requires_grad(),
                "expected frozen weights in the host's memory, found ones that are trained");
  const bool recorded = at::GradMode::is_enabled() && !again;
  const at::NoGradGuard no_grad;
  const Unit& unit = units_.at(number);
  if (number == 0) {
    if (outer_.empty()) outer_ = copies_of(unit);
    return outer_;
  }
  if (recorded) return copies_of(unit);
  std::vector<at::Tensor> out = slots_->use(unit.number);
  // Past those that stay: the next to travel has their time as well.
  const auto behind = [again](size_t at) { return again ? at - 1 : at + 1; };
  size_t next = behind(number);
  while (next > 0 && next < units_.size() && slots_->resident(units_[next].number)) next = behind(next);
  if (next > 0 && next < units_.size()) slots_->prepare(units_[next].number);
  return out;
}

}  // namespace vmoba::model
