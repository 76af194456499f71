// The page's own style and script, as CMake copies them out of report.css and report.js beside this file.
#pragma once

namespace vmoba::report {

extern const char* const kStyle;
extern const char* const kScript;

}  // namespace vmoba::report
