// Which kernel family a device runs. sm_90a code uses instructions of compute capability 9.0 alone; everything else
// from 8.0 on takes the mma.sync kernels.
#include "attention/kernels/kernels.h"

namespace vmoba::kernels {

int kernel_family(int device) {
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return 0;
  if (major == 9) return 90;
  return major >= 8 ? 80 : 0;
}

}  // namespace vmoba::kernels
