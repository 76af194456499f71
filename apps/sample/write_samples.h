// What vmoba-sample does: all parts are loaded once, then the videos are made one after the other.
#pragma once
#include "apps/sample/job.h"

namespace vmoba::apps {

// Prints the name of each file when it is whole, and logs its seed, density and seconds. Returns the exit code.
int write_samples(const SampleArguments& arguments);

}  // namespace vmoba::apps
