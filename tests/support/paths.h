// Where this checkout has what tests read and run, as absolute paths. One file alone is compiled with them, so that a
// compiler's cache serves the tests of another checkout.
#pragma once
#include <string>

namespace vmoba::test {

std::string source_dir();
std::string fixtures();  // tests/fixtures
std::string bin_dir();   // the programs
std::string python();    // the interpreter that has the packages of scripts/requirements-test.txt

}  // namespace vmoba::test
