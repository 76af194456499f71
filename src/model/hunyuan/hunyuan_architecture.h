// HunyuanVideo's rows of model/architecture.h.
#pragma once
#include "model/architecture.h"

namespace vmoba::model {

Architecture hunyuan_architecture();
Architecture hunyuan_15_architecture();

}  // namespace vmoba::model
