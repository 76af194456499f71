// Makes matrix products on Intel CPUs repeatable: without it MKL picks its way through a product by the addresses and
// the number of threads, and the last bits change with them. Called first in every main(); owns nothing.
#pragma once
#include <cstdlib>

namespace vmoba {

// Asks MKL for its strict reproducible mode, which it reads before its first product. A mode that the user has chosen
// stays. Other makers' CPUs are left alone: there the mode would mean MKL's slowest code.
inline void make_products_repeatable() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_is("intel") && __builtin_cpu_supports("avx2")) ::setenv("MKL_CBWR", "AUTO,STRICT", /*replace=*/0);
#endif
}

}  // namespace vmoba
