"""What scripts/wandb_import.py uses of wandb's documented interface. A run becomes FOLDER/wandb/offline-run-N/run.json.

Calls that wandb refuses or drops fail here: unknown arguments, other modes, steps that fall, values that are no numbers.
"""
import json
import math
import pathlib


class Settings:
    def __init__(self, *, silent=False, console="auto", save_code=None, x_disable_stats=False, x_disable_meta=False):
        assert console in ("auto", "off", "wrap", "redirect"), console


class Run:
    def __init__(self, project, name, config, folder):
        self._place = folder
        self.dir = str(folder / "files")
        pathlib.Path(self.dir).mkdir(parents=True)
        self._said = {"project": project, "name": name, "config": dict(config), "history": []}

    def log(self, data, step=None, commit=None):
        history = self._said["history"]
        assert isinstance(step, int) and (not history or step > history[-1]["_step"]), step
        assert all(isinstance(key, str) and isinstance(value, (int, float)) and math.isfinite(value)
                   for key, value in data.items()), data
        history.append({**data, "_step": step})

    def finish(self, exit_code=None, quiet=None):
        (self._place / "run.json").write_text(json.dumps(self._said))


def init(*, project=None, name=None, config=None, dir=None, mode="online", reinit=None, settings=None):
    assert mode == "offline", mode
    assert reinit in (None, "default", "return_previous", "finish_previous", "create_new"), reinit
    assert settings is None or isinstance(settings, Settings), settings
    root = pathlib.Path(dir) / "wandb"
    return Run(project, name, config or {}, root / f"offline-run-{len(list(root.glob('offline-run-*')))}")
