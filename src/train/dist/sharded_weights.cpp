#include "train/dist/sharded_weights.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "model/common/fp8_factor.h"

namespace vmoba::train::dist {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

// What a parameter is gathered in: values are only ever narrowed, never widened, before they travel.
at::ScalarType travel_dtype(const model::StoredParameter& p, at::ScalarType compute_dtype) {
  const at::ScalarType stored = p.part.scalar_type();
  const bool narrower = c10::elementSize(compute_dtype) < c10::elementSize(stored);
  return p.in_compute_dtype && narrower ? compute_dtype : stored;
}

// Whether a parameter travels as an fp8 factor: each rank holds whole rows of it, and quantises them as one rank would.
bool travels_as_fp8(const model::StoredParameter& p, at::ScalarType dtype) {
  return p.fp8_factor && c10::elementSize(p.part.scalar_type()) > 1 && p.part.numel() % p.shape[1] == 0 &&
         (!p.part.is_cuda() || dtype == at::kBFloat16);
}

// Communicators carry no 8-bit floats: these travel as bytes.
at::Tensor as_carried(const at::Tensor& values) {
  return values.element_size() == 1 ? values.view(at::kByte) : values;
}

// A unit's parts of one type, one behind the other.
at::Tensor joined(const std::vector<model::StoredParameter>& parameters, const std::vector<size_t>& members,
                  at::ScalarType dtype) {
  std::vector<at::Tensor> parts;
  for (const size_t i : members) parts.push_back(as_carried(parameters[i].part.detach().to(dtype)));
  return at::cat(parts);
}

// A unit's parts as fp8 factors, one behind the other: values as they are carried, and a scale for each of their rows.
model::Fp8Rows fp8_rows_of(const std::vector<model::StoredParameter>& parameters, const std::vector<size_t>& members,
                           at::ScalarType dtype) {
  std::vector<at::Tensor> values, scales;
  for (const size_t i : members) {
    const model::StoredParameter& p = parameters[i];
    const model::Fp8Rows rows = model::fp8_rows({p.part.detach().to(dtype).view({-1, p.shape[1]})}, at::kFloat8_e4m3fn);
    values.push_back(as_carried(rows.values).view(-1));
    scales.push_back(rows.scale.view(-1));
  }
  return {at::cat(values), at::cat(scales), {}};
}

// What fp8 factors [ranks, rows, columns] with scales [ranks, rows] stand for. Scales are powers of two: it is exact.
at::Tensor values_of(const at::Tensor& carried, const at::Tensor& scales, at::ScalarType dtype) {
  return carried.view(at::kFloat8_e4m3fn).to(dtype).mul_(scales.unsqueeze(2).to(dtype));
}

// Writes `whole` as rows [ranks, part] into `rows`, whose padding holds zeros already.
void copy_to_rows(const at::Tensor& whole, const at::Tensor& rows) {
  const at::Tensor values = whole.reshape(-1);
  const int64_t part = rows.size(1), full = values.numel() / part, rest = values.numel() % part;
  rows.narrow(0, 0, full).copy_(values.narrow(0, 0, full * part).view({full, part}));
  if (rest > 0) rows.select(0, full).narrow(0, 0, rest).copy_(values.narrow(0, full * part, rest));
}

}  // namespace

// Parts in, whole parameters out. The gradients go to the parts' .grad by another way (scatter), later than this
// function's return, so that their sum need not be awaited here.
struct GatherUnit : torch::autograd::Function<GatherUnit> {
  struct Holder : torch::CustomClassHolder {
    Holder(ShardedWeights& owner, size_t unit) : owner(owner), unit(unit) {}
    ShardedWeights& owner;
    size_t unit;
  };

  static variable_list forward(AutogradContext* context, ShardedWeights* owner, int64_t unit,
                               at::ScalarType compute_dtype, bool again, at::TensorList parts) {
    context->saved_data["unit"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(*owner, size_t(unit)));
    context->saved_data["inputs"] = int64_t(4 + parts.size());
    context->set_materialize_grads(false);
    return owner->whole_parameters(size_t(unit), compute_dtype, again);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto capsule = context->saved_data["unit"].toCapsule();
    const auto& holder = static_cast<const Holder&>(*capsule);
    holder.owner.scatter(holder.unit, gradients);
    return variable_list(size_t(context->saved_data["inputs"].toInt()));
  }
};

at::Tensor ShardedWeights::keep(const at::Tensor& whole) const {
  const at::NoGradGuard no_grad;
  const int64_t units = (whole.numel() + values_per_unit_ - 1) / values_per_unit_, ranks = ranks_.size();
  const int64_t part = (units + ranks - 1) / ranks * values_per_unit_;
  const int64_t begin = std::min(part * ranks_.rank(), whole.numel()), end = std::min(begin + part, whole.numel());
  const at::Tensor out = at::zeros({part}, whole.options().requires_grad(false));
  as_carried(out.narrow(0, 0, end - begin)).copy_(as_carried(whole.detach().reshape(-1).narrow(0, begin, end - begin)));
  return out;
}

size_t ShardedWeights::add_unit(std::vector<model::StoredParameter> parameters) {
  units_.emplace_back().parameters = std::move(parameters);
  return units_.size() - 1;
}

ShardedWeights::GatheredUnit ShardedWeights::launch(size_t unit, at::ScalarType compute_dtype) {
  const at::NoGradGuard no_grad;
  const auto& parameters = units_.at(unit).parameters;
  GatheredUnit out{unit, compute_dtype, {}};
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::ScalarType dtype = travel_dtype(parameters[i], compute_dtype);
    const bool as_fp8 = travels_as_fp8(parameters[i], dtype);
    auto same = std::find_if(out.gatherings.begin(), out.gatherings.end(), [&](const Gathering& gathering) {
      return gathering.dtype == dtype && gathering.as_fp8 == as_fp8;
    });
    if (same == out.gatherings.end()) same = out.gatherings.insert(same, {dtype, as_fp8});
    same->members.push_back(i);
  }
  const auto begin = [&](const at::Tensor& own, at::Tensor& all) {
    all = at::empty({ranks_.size(), own.numel()}, own.options());
    return ranks_.all_gather(own, all);
  };
  for (Gathering& gathering : out.gatherings) {
    if (gathering.as_fp8) {
      const model::Fp8Rows own = fp8_rows_of(parameters, gathering.members, gathering.dtype);
      gathering.work = begin(own.values, gathering.flat);
      gathering.scale_work = begin(own.scale, gathering.scales);
    } else {
      gathering.work = begin(joined(parameters, gathering.members, gathering.dtype), gathering.flat);
    }
  }
  return out;
}

std::vector<at::Tensor> ShardedWeights::await(GatheredUnit gathered) {
  const auto& parameters = units_[gathered.unit].parameters;
  std::vector<at::Tensor> out(parameters.size());
  for (Gathering& gathering : gathered.gatherings) {
    gathering.work->wait();
    if (gathering.as_fp8) gathering.scale_work->wait();
    int64_t offset = 0, row = 0;
    for (const size_t i : gathering.members) {
      const std::vector<int64_t>& shape = parameters[i].shape;
      const int64_t part = parameters[i].part.numel(), rows = gathering.as_fp8 ? part / shape[1] : 0;
      const at::Tensor carried = gathering.flat.narrow(1, offset, part);
      const at::Tensor values = gathering.as_fp8 ? values_of(carried.unflatten(1, {rows, shape[1]}),
                                                             gathering.scales.narrow(1, row, rows), gathering.dtype)
                                                 : carried.clone(at::MemoryFormat::Contiguous);
      out[i] = values.view(-1).narrow(0, 0, count_of(shape)).view(shape).view(gathering.dtype);
      offset += part, row += rows;
    }
    gathering.flat.reset();
    gathering.scales.reset();
  }
  return out;
}

bool ShardedWeights::holds(size_t unit, at::ScalarType compute_dtype) const {
  return !units_[unit].whole.empty() && units_[unit].whole_dtype == compute_dtype;
}

void ShardedWeights::begin_next(size_t unit, at::ScalarType compute_dtype, bool again) {
  const size_t next = again ? unit - 1 : unit + 1;
  // Unit 0 stays, backward ends with unit 1.
  if (next == 0 || next >= units_.size() || holds(next, compute_dtype)) return;
  ahead_ = std::make_unique<GatheredUnit>(launch(next, compute_dtype));
}

std::vector<at::Tensor> ShardedWeights::whole_parameters(size_t number, at::ScalarType compute_dtype, bool again) {
  const at::NoGradGuard no_grad;
  Unit& unit = units_.at(number);
  std::vector<at::Tensor> out;
  if (holds(number, compute_dtype)) {
    out = unit.whole;
  } else if (ahead_ && ahead_->unit == number && ahead_->compute_dtype == compute_dtype) {
    out = await(*std::exchange(ahead_, nullptr));
    early_gathers_ += 1;
  } else {
    ahead_.reset();
    out = await(launch(number, compute_dtype));
  }
  if (keeping_) unit.whole = out, unit.whole_dtype = compute_dtype;
  // Begun here and not before, so that two gathered units exist at most where none is kept.
  begin_next(number, compute_dtype, again);
  if (!keeping_) return out;
  // Other tensors of the same values each time: autograd gives them a history.
  for (at::Tensor& whole : out) whole = whole.detach();
  return out;
}

int64_t ShardedWeights::gathered_bytes(at::ScalarType compute_dtype) const {
  int64_t bytes = 0;
  for (const Unit& unit : units_)
    for (const model::StoredParameter& p : unit.parameters)
      bytes += count_of(p.shape) * int64_t(c10::elementSize(travel_dtype(p, compute_dtype)));
  return bytes;
}

std::vector<at::Tensor> ShardedWeights::gather(size_t unit, at::TensorList parts, at::ScalarType compute_dtype,
                                               bool again) {
  return GatherUnit::apply(this, int64_t(unit), compute_dtype, again, parts);
}

void ShardedWeights::scatter(size_t number, const std::vector<at::Tensor>& gradients) {
  const at::NoGradGuard no_grad;
  settle();
  const Unit& unit = units_[number];
  VMOBA_CHECK(unit.gradient.defined(), "expected begin_step() before backward, found no gradients of unit {}", number);
  const at::Tensor rows = at::zeros({ranks_.size(), unit.gradient.numel()}, unit.gradient.options());
  int64_t offset = 0;
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    const at::Tensor& part = unit.parameters[i].part;
    if (!part.requires_grad()) continue;
    if (gradients[i].defined()) copy_to_rows(gradients[i], rows.narrow(1, offset, part.numel()));
    offset += part.numel();
  }
  const at::Tensor own = at::empty_like(unit.gradient);
  scattering_ = std::make_unique<Scattering>(Scattering{number, own, ranks_.reduce_scatter(rows, own)});
}

// The sum that is under way is added to its parts.
void ShardedWeights::settle() {
  if (!scattering_) return;
  const at::NoGradGuard no_grad;
  scattering_->work->wait();
  Unit& unit = units_[scattering_->unit];
  unit.gradient.add_(scattering_->own);
  scattering_.reset();
  // Unit 0's backward is the last, and a unit's only one in a pass.
  if (last_pass_) sum_over_copies(unit);
}

void ShardedWeights::sum_over_copies(Unit& unit) {
  if (!unit.gradient.defined() || unit.summed) return;
  unit.summed = true;
  copy_sums_.push_back(replicas_.all_reduce(unit.gradient));
}

void ShardedWeights::begin_step() {
  last_pass_ = false;
  drop_gathered();
  keeping_ = keeps_;
  ahead_.reset();  // holds values of before the update
  for (Unit& unit : units_) {
    unit.summed = false;
    int64_t count = 0;
    at::TensorOptions options = at::TensorOptions(at::kFloat);
    for (const model::StoredParameter& p : unit.parameters) {
      if (!p.part.requires_grad()) continue;
      options = options.device(p.part.device());
      if (p.part.scalar_type() == at::kDouble) options = options.dtype(at::kDouble);
      count += p.part.numel();
    }
    if (count == 0) continue;
    if (!unit.gradient.defined()) unit.gradient = at::empty({count}, options);
    unit.gradient.zero_();
    int64_t offset = 0;
    for (model::StoredParameter& p : unit.parameters) {
      if (!p.part.requires_grad()) continue;
      p.part.mutable_grad() = unit.gradient.narrow(0, offset, p.part.numel());
      offset += p.part.numel();
    }
  }
}

void ShardedWeights::begin_last_pass() {
  settle();
  last_pass_ = true;
}

void ShardedWeights::finish() {
  settle();
  // A unit that took no part in the last pass may have gradients of passes before it.
  for (Unit& unit : units_) sum_over_copies(unit);
  for (const WorkPtr& sum : copy_sums_) sum->wait();
  copy_sums_.clear();
  drop_gathered();
  last_pass_ = false;
}

void ShardedWeights::drop_gathered() {
  keeping_ = false;
  for (Unit& unit : units_) unit.whole.clear();
}

at::Tensor norm_over_parts(Communicator& ranks, const at::Tensor& norm_of_part) {
  const at::NoGradGuard no_grad;
  const at::Tensor square = norm_of_part.square();
  ranks.all_reduce(square)->wait();
  return square.sqrt();
}

}  // namespace vmoba::train::dist
