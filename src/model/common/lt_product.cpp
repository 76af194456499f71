#include "model/common/lt_product.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <c10/cuda/CUDAGuard.h>
#include <cublasLt.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>

#include "core/check.h"

namespace vmoba::model {
namespace {

constexpr size_t kWorkspaceBytes = size_t(32) << 20;

void check(cublasStatus_t status, const char* what) {
  VMOBA_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: expected {} to succeed, found {}", what,
              cublasLtGetStatusString(status));
}

template <typename Handle, cublasStatus_t (*destroy)(Handle)>
struct Destroy {
  void operator()(Handle handle) const { destroy(handle); }
};
using Description = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>,
                                    Destroy<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>,
                               Destroy<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                                   Destroy<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

// cuBLASLt counts columns first: a matrix of torch, [rows, columns], is its columns x rows.
Layout layout_of(const at::Tensor& x) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, uint64_t(x.size(1)), uint64_t(x.size(0)), x.size(1)),
        "a layout");
  return Layout(layout);
}

// D = A B through the derivative of GELU at `before`, in cuBLASLt's order.
struct Product {
  const at::Tensor &a, &b, &before, &d;
};

Description describe(const Product& p) {
  cublasLtMatmulDesc_t made = nullptr;
  check(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description");
  Description out(made);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulDescSetAttribute(made, attribute, &value, sizeof(value)), "an attribute");
  };
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DGELU);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.before.data_ptr());
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(p.before.size(1)));
  return out;
}

// The first choice of cuBLASLt for products of such sizes; none where it has none with this epilogue.
std::optional<cublasLtMatmulAlgo_t> algorithm(const Product& p, const Description& description, const Layout& a,
                                              const Layout& b, const Layout& d) {
  using Key = std::tuple<int, int64_t, int64_t, int64_t>;
  static std::mutex mutex;
  static std::map<Key, std::optional<cublasLtMatmulAlgo_t>> known;
  const std::lock_guard lock(mutex);
  const Key key(p.d.device().index(), p.d.size(0), p.d.size(1), p.b.size(1));
  if (const auto found = known.find(key); found != known.end()) return found->second;
  cublasLtMatmulPreference_t made = nullptr;
  check(cublasLtMatmulPreferenceCreate(&made), "a preference");
  const Preference preference(made);
  check(cublasLtMatmulPreferenceSetAttribute(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                             sizeof(kWorkspaceBytes)),
        "a preference");
  cublasLtMatmulHeuristicResult_t result = {};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(at::cuda::getCurrentCUDABlasLtHandle(), description.get(), a.get(), b.get(),
                                     d.get(), d.get(), made, 1, &result, &count);
  return known[key] = status == CUBLAS_STATUS_SUCCESS && count > 0 ? std::optional(result.algo) : std::nullopt;
}

// Whether cuBLASLt has a kernel for it, which then runs.
bool run(const Product& p) {
  const c10::cuda::CUDAGuard guard(p.d.device());
  const Description description = describe(p);
  const Layout a = layout_of(p.a), b = layout_of(p.b), d = layout_of(p.d);
  const auto chosen = algorithm(p, description, a, b, d);
  if (!chosen) return false;
  const at::Tensor workspace = at::empty({int64_t(kWorkspaceBytes)}, p.d.options().dtype(at::kByte));
  const float one = 1, zero = 0;
  check(cublasLtMatmul(at::cuda::getCurrentCUDABlasLtHandle(), description.get(), &one, p.a.const_data_ptr(), a.get(),
                       p.b.const_data_ptr(), b.get(), &zero, p.d.const_data_ptr(), d.get(), p.d.mutable_data_ptr(),
                       d.get(), &*chosen, workspace.mutable_data_ptr(), kWorkspaceBytes,
                       at::cuda::getCurrentCUDAStream()),
        "a product");
  return true;
}

}  // namespace

at::Tensor product_through_gelu(const at::Tensor& dy_RO, const at::Tensor& weight_OI, const at::Tensor& before_RI) {
  const at::Tensor out_RI = at::empty(before_RI.sizes(), before_RI.options());
  const auto fits = [](const at::Tensor& x) { return x.size(0) % 8 == 0 && x.size(1) % 8 == 0; };
  if (fits(weight_OI) && fits(before_RI) && run({weight_OI, dy_RO, before_RI, out_RI})) return out_RI;
  return at::gelu_backward(at::mm(dy_RO, weight_OI), before_RI, "tanh");
}

}  // namespace vmoba::model
