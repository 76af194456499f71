// Catch2 2.13 (Debian 12) and 3.x (Ubuntu 24.04) behind one name.
#pragma once
#ifdef VMOBA_CATCH2_V3
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
