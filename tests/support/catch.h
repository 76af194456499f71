// Catch2 2.13 (Debian 12) and 3.x (Ubuntu 24.04) behind one name.
#pragma once
#ifdef VMOBA_CATCH2_V3
#include <catch2/catch_all.hpp>
using Catch::Approx;
#ifdef __CUDACC__
// Without the `nv_diagnostic push` and `pop` that Catch2 3 puts around every assertion. The front end of CUDA 13 reads
// the pragmas in a member function's body twice where the function is defined inside its class. The second time it
// makes the last pop of the file so far its own push, and the next warning looked up below it goes round for ever.
#undef CATCH_INTERNAL_START_WARNINGS_SUPPRESSION
#undef CATCH_INTERNAL_STOP_WARNINGS_SUPPRESSION
#define CATCH_INTERNAL_START_WARNINGS_SUPPRESSION
#define CATCH_INTERNAL_STOP_WARNINGS_SUPPRESSION
#endif
#else
#include <catch2/catch.hpp>
#endif
