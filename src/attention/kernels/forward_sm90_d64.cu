// Head size 64 of the sm_90a forward.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include "attention/kernels/forward_sm90.cuh"

namespace vmoba::kernels {

cudaError_t attend_wave_sm90_d64(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream) {
  constexpr int kStepKeys = 36;
  switch (forward_sm90::cheapest_key_tile(problem, {144, 160, 176, 192}, kStepKeys)) {
    case 144:
      return forward_sm90::launch_attend<64, 144>(problem, wave, sm_count, stream);
    case 160:
      return forward_sm90::launch_attend<64, 160>(problem, wave, sm_count, stream);
    case 176:
      return forward_sm90::launch_attend<64, 176>(problem, wave, sm_count, stream);
    default:
      return forward_sm90::launch_attend<64, 192>(problem, wave, sm_count, stream);
  }
}

}  // namespace vmoba::kernels
