// Types of numbers in configurations and on command lines; what torch calls them is in model/common/dtype.h.
#pragma once
#include "core/choice.h"

namespace vmoba {

enum class Dtype { kFp32, kBf16, kFp16, kFp64, kFp8 };
const Choices<Dtype>& choices_of(Dtype);  // fp32 | bf16 | fp16 | fp64 | fp8 (e4m3)

}  // namespace vmoba
