// Adapters of maps that a file has as one (q, k and v, say) and the model as several, both ways; and those of maps
// whose halves of rows stand in the other order. Exact: A [r, in] is shared by the parts, B [out, r] is cut by rows.
#pragma once
#include <string>
#include <vector>

#include "model/adapter/weight_change.h"
#include "model/architecture.h"

namespace vmoba::model {

// A change of the file's map as changes of what it holds, in its order; each owns its tensors. `path` names the file in
// messages. Throws Error(kInput) where its rows cannot be cut so.
std::vector<ModuleChange> split_change(const ModuleChange& change, const Held& held, const std::string& path);

// The adapters in the names of a layout, fused where it has several maps as one: their A one below the other and B
// block by block, or, where all have one A, that one and B below each other. A map without an adapter has zeros in B;
// where its number of rows cannot be told from the others, `shape_of` (may be empty) is asked, else Error(kInput).
std::vector<Adapter> in_layout(const std::vector<Adapter>& adapters, const Layout& layout, const ShapeOf& shape_of);

}  // namespace vmoba::model
