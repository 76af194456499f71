// What a linear map adds to a forward pass's work (model::ForwardWork), for the models' lists.
#pragma once
#include <vector>

#include "model/common/parameters.h"

namespace vmoba::model {

struct MapUse {
  double rows = 0;         // that the map is applied to
  bool on_tokens = false;  // ForwardWork::on_tokens
  bool kept = false;       // whether a recomputed block can keep its result, under the map's name
};

// A linear map's weight adds its work; other parameters have none.
bool is_map(const ParameterSpec& spec);
ForwardWork map_work(const ParameterSpec& spec, const MapUse& use);

}  // namespace vmoba::model
