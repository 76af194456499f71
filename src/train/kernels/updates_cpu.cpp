#include <algorithm>

#include "train/kernels/update_arithmetic.h"

namespace vmoba::updates {
namespace {

float load(const void* values, Width width, int64_t i) {
  return width == Width::kFloat ? static_cast<const float*>(values)[i]
                                : from_bfloat16(static_cast<const uint16_t*>(values)[i]);
}

// Draws are made once for their values, in order.
class Store {
 public:
  Store(void* weight, Width width, int64_t first_value, uint64_t step, const uint32_t (&key)[2])
      : weight_(weight), width_(width), first_value_(first_value), step_(step), key_{key[0], key[1]} {}

  void operator()(int64_t i, float value) {
    if (width_ == Width::kFloat) {
      static_cast<float*>(weight_)[i] = value;
      return;
    }
    const int64_t place = first_value_ + i, group = place / kDrawValues;
    if (group != group_) draws_ = draw(uint64_t(group), step_, key_);
    group_ = group;
    static_cast<uint16_t*>(weight_)[i] = rounded(value, draws_.of(int(place % kDrawValues)));
  }

 private:
  void* weight_;
  Width width_;
  int64_t first_value_;
  uint64_t step_;
  uint32_t key_[2];
  int64_t group_ = -1;
  Draws draws_{};
};

bool skips(const float* skip) {
  return skip != nullptr && *skip != 0;
}

}  // namespace

void adamw_on_cpu(const Tensor& t, int64_t begin, int64_t end, const Step& step, const CodeTables* tables) {
  if (skips(step.skip)) return;
  const float factor = step.factor != nullptr ? *step.factor : 1.0f;
  const bool coded = t.first_scale != nullptr;
  Store store(t.weight, t.weight_width, t.first_value, step.number, t.key);
  float first[kScaleValues], second[kScaleValues];
  for (int64_t from = begin; from < end; from += kScaleValues) {
    const int64_t count = std::min(kScaleValues, end - from), block = from / kScaleValues;
    float first_scale = 0, second_scale = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = from + i;
      if (coded) {
        first[i] = tables->first.values[static_cast<uint8_t*>(t.first)[at]] * t.first_scale[block];
        second[i] = tables->second.values[static_cast<uint8_t*>(t.second)[at]] * t.second_scale[block];
      } else {
        first[i] = static_cast<float*>(t.first)[at];
        second[i] = static_cast<float*>(t.second)[at];
      }
      const float gradient = load(t.gradient, t.gradient_width, at) * factor;
      store(at, updated(load(t.weight, t.weight_width, at), gradient, first[i], second[i], step));
      first_scale = std::max(first_scale, std::fabs(first[i]));
      second_scale = std::max(second_scale, second[i]);
    }
    if (coded) {
      t.first_scale[block] = first_scale;
      t.second_scale[block] = second_scale;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = from + i;
      if (coded) {
        static_cast<uint8_t*>(t.first)[at] = code_of(in_units(first[i], first_scale), tables->first.bounds);
        static_cast<uint8_t*>(t.second)[at] = code_of(in_units(second[i], second_scale), tables->second.bounds);
      } else {
        static_cast<float*>(t.first)[at] = first[i];
        static_cast<float*>(t.second)[at] = second[i];
      }
    }
  }
}

void add_change_on_cpu(const Sum& sum, int64_t begin, int64_t end) {
  if (skips(sum.skip)) return;
  Store store(sum.weight, sum.weight_width, sum.first_value, sum.number, sum.key);
  for (int64_t i = begin; i < end; ++i)
    store(i, changed(load(sum.weight, sum.weight_width, i), load(sum.change, Width::kBfloat16, i), sum));
}

}  // namespace vmoba::updates
