#include "train/dist/dist_world.h"

#include <cstdlib>

namespace vmoba::test {

train::dist::World& world() {
  static train::dist::World* joined = [] {
    std::atexit([] { world().leave(0); });
    return new train::dist::World();
  }();
  return *joined;
}

}  // namespace vmoba::test
