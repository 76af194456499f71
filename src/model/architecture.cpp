#include "model/architecture.h"

#include <algorithm>
#include <cctype>

#include "core/check.h"
#include "model/hunyuan/hunyuan_architecture.h"
#include "model/wan/wan_architecture.h"

namespace vmoba::model {

// One line per model.
const Registry<Architecture>& architectures() {
  static const Registry<Architecture> table("model.architecture", {{"wan", wan_architecture()},
                                                                   {"hunyuan_video", hunyuan_architecture()},
                                                                   {"hunyuan_video_15", hunyuan_15_architecture()}});
  return table;
}

const Architecture& architecture_of(const ModelConfig& config) {
  return architectures().find(config.architecture);
}

std::string default_architecture() {
  return "wan";
}

std::string recognised_architecture(const std::vector<std::string>& stored_names) {
  for (const std::string& name : architectures().names())
    if (find_layout(architectures().find(name).layouts, stored_names) != nullptr) return name;
  return "";
}

bool any_name(const Architecture& architecture, const std::string& module,
              const std::function<bool(const std::string&)>& fits) {
  return std::any_of(architecture.layouts.begin(), architecture.layouts.end(), [&](const Layout& layout) {
    return fits(layout.names.empty() ? module : layout.names.from_diffusers(module).value_or(module));
  });
}

std::string block_of(const Architecture& architecture, const std::string& name) {
  for (const std::string& prefix : architecture.blocks) {
    const size_t end = name.find('.', prefix.size());
    const bool numbered = name.size() > prefix.size() && std::isdigit(static_cast<unsigned char>(name[prefix.size()]));
    if (name.starts_with(prefix) && numbered && end != std::string::npos) return name.substr(0, end + 1);
  }
  return "";
}

const Layout& layout_named(const Architecture& architecture, const std::string& name) {
  std::string known;
  for (const Layout& layout : architecture.layouts) {
    if (layout.name == name) return layout;
    known += (known.empty() ? "" : ", ") + layout.name;
  }
  throw_input("expected a layout of weights that the model has ({}), found '{}'", known, name);
}

}  // namespace vmoba::model
