// The job that a test program under mpirun is a rank of; alone, a world of one.
#pragma once
#include "train/dist/world.h"

namespace vmoba::test {

// Joined at the first call, left in good order at the end of the program.
train::dist::World& world();

}  // namespace vmoba::test
