// Which kernel family a device runs. sm_90a code uses instructions of compute capability 9.0 alone; everything else
// from 8.0 on takes the mma.sync kernels.
#include <atomic>

#include "attention/kernels/kernels.h"

namespace vmoba::kernels {
namespace {

std::atomic<int> default_family{0};

}  // namespace

void set_default_family(int family) {
  default_family = family;
}

int kernel_family(int device, int wanted) {
  if (wanted == 0) wanted = default_family;
  if (device < 0) return wanted;
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    cudaGetLastError();  // else the next launch would be blamed for it
    return 0;
  }
  const int own = major == 9 ? 90 : major >= 8 ? 80 : 0;
  if (wanted == 0) return own;
  return wanted == own || (wanted == 80 && own != 0) ? wanted : 0;
}

}  // namespace vmoba::kernels
