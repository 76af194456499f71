// What a linear map adds to a forward pass's work (model::ForwardWork), for the models' lists.
#pragma once
#include <vector>

#include "model/common/parameters.h"

namespace vmoba::model {

struct BlockActivations;  // model/architecture.h

struct MapUse {
  double rows = 0;         // that the map is applied to
  bool on_tokens = false;  // ForwardWork::on_tokens
  bool kept = false;       // whether a recomputed block can keep its result, under the map's name
};

// A linear map's weight adds its work; other parameters have none.
bool is_map(const ParameterSpec& spec);
ForwardWork map_work(const ParameterSpec& spec, const MapUse& use);

// What a block moves for maps in fp8 (common/fp8_linear.h) beside what it moves without: the values of a row in all
// inputs of such maps, in all gradients of their results, and hidden ones of a feed-forward, which are of neither.
struct QuantisedValues {
  double inputs = 0, gradients = 0, hidden = 0;
};
void add_quantising(const QuantisedValues& values, BlockActivations& block);

}  // namespace vmoba::model
