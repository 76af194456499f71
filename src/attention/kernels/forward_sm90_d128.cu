// Head size 128 of the sm_90a forward.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include "attention/kernels/forward_sm90.cuh"

namespace vmoba::kernels {

cudaError_t attend_wave_sm90_d128(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream) {
  constexpr int kStepKeys = 10;
  switch (forward_sm90::cheapest_key_tile(problem, {128, 144, 160}, kStepKeys)) {
    case 128:
      return forward_sm90::launch_attend<128, 128>(problem, wave, sm_count, stream);
    case 144:
      return forward_sm90::launch_attend<128, 144>(problem, wave, sm_count, stream);
    default:
      return forward_sm90::launch_attend<128, 160>(problem, wave, sm_count, stream);
  }
}

}  // namespace vmoba::kernels
