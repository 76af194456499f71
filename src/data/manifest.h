// The list of media files with their captions, from any of the layouts of docs/data.md.
#pragma once
#include <string>
#include <vector>

#include "data/clip_plan.h"
#include "data/media_cut.h"

namespace vmoba::data {

struct ManifestEntry {
  std::string path;     // resolved: absolute, or relative to the working folder
  std::string caption;  // without prefix; empty where there is none
  std::string origin;   // "metadata.csv:12", or "" for folders
  MediaCut cut;         // which part of the file is meant
  std::string mask;     // resolved as `path`; empty: none
};

struct Manifest {
  std::vector<ManifestEntry> entries;  // in the manifest's order; folders in byte order of the paths
  std::vector<DroppedClip> dropped;    // lines and files that name no usable entry, media that no line names
  std::vector<std::string> notes;      // what else is to be said of it
};

// Throws Error(kInput) where config.path does not exist or is not of the format. Media files need not exist.
Manifest read_manifest(const DataConfig& config);

}  // namespace vmoba::data
