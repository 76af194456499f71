// The backward's main kernel on sm_90a for head size 128 (an instance a file keeps compiles parallel).
#include "attention/kernels/backward_sm90.cuh"

namespace vmoba::kernels {

cudaError_t backward_main_sm90_d128(const BackwardProblem& problem, int sm_count, cudaStream_t stream) {
  return problem.deterministic ? backward_sm90::launch<128, true>(problem, sm_count, stream)
                               : backward_sm90::launch<128, false>(problem, sm_count, stream);
}

}  // namespace vmoba::kernels
