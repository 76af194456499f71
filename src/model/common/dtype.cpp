#include "model/common/dtype.h"

namespace vmoba::model {

at::ScalarType scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp32:
      return at::kFloat;
    case Dtype::kBf16:
      return at::kBFloat16;
    case Dtype::kFp16:
      return at::kHalf;
    case Dtype::kFp64:
      return at::kDouble;
    case Dtype::kFp8:
      return at::kFloat8_e4m3fn;
  }
  throw_runtime("expected a type of numbers, found the number {}", static_cast<int>(dtype));
}

}  // namespace vmoba::model
