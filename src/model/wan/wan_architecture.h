// Wan's row of model/architecture.h.
#pragma once
#include "model/architecture.h"

namespace vmoba::model {

Architecture wan_architecture();

}  // namespace vmoba::model
