#include "config/validate_config.h"

#include <set>

#include "core/check.h"

namespace vmoba {

void ValidateConfig::visit(ConfigVisitor& v) {
  v.field("path", path, "Held-out clips: a folder or manifest, cut as those of `data.path`. Empty: see `holdout`.");
  v.field("holdout", holdout,
          "Share of the files of `data.path` that is held out, by a hash of their names: never trained on. 0: none.",
          between(0, 0.9));
  v.field("every", every, "Steps between held-out losses; the last step has one as well.", at_least(1));
  v.field("clips", clips, "Held-out clips that are used, at even distances among all.", at_least(1));
  v.field("sigmas", sigmas, "Noise levels of every clip, from 0 (none) to 1 (noise alone).", list_of(-1, 0));
  v.field("seed", seed, "Seed of the noise.", at_least(0));
}

void ValidateConfig::validate() const {
  VMOBA_CHECK_INPUT(path.empty() || holdout == 0,
                    "validate.path: expected held-out clips from one place, found also validate.holdout {}; set "
                    "validate.holdout=0, or remove validate.path",
                    holdout);
  VMOBA_CHECK_INPUT(!sigmas.empty(), "validate.sigmas: expected at least one noise level, found none");
  for (const double sigma : sigmas)
    VMOBA_CHECK_INPUT(sigma > 0 && sigma <= 1, "validate.sigmas: expected noise levels above 0 up to 1, found {}",
                      sigma);
  VMOBA_CHECK_INPUT(std::set<double>(sigmas.begin(), sigmas.end()).size() == sigmas.size(),
                    "validate.sigmas: expected each noise level once, found one of {} again; remove it", sigmas.size());
}

}  // namespace vmoba
