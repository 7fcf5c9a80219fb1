"""The findings of the papers, each run again on Shapes by one command."""

import importlib
from pathlib import Path

from fcn_fast.command import writable_folder

__all__ = ["NAMES", "run"]

_WHERE = {
    "skips": "skips:EXPERIMENT",
    "upsampling": "upsampling:EXPERIMENT",
    "momentum": "momentum:EXPERIMENT",
    "sampling-images": "sampling:IMAGES",
    "sampling-pixels": "sampling:PIXELS",
    "masking": "masking:EXPERIMENT",
    "upper-bounds": "upper_bounds:EXPERIMENT",
    "points": "points:EXPERIMENT",
}
NAMES = tuple(_WHERE)


def run(name, out, seed=0):
    """Run an experiment: write its table and its figure, and print the table.

    Args:
        name: one of :data:`NAMES`.
        out: folder; what the experiment writes goes into one of its name, the nets that experiments share into runs.
        seed: of the first weights and of the pictures to train on; another than 0 stands in the folders' names.

    Returns:
        0.

    Raises:
        InputError: no folder that can be written.
    """
    module, _, attribute = _WHERE[name].partition(":")
    experiment = getattr(importlib.import_module(f"fcn_fast.experiments.{module}"), attribute)
    folder = writable_folder(Path(out) / (name + bool(seed) * f"-seed-{seed}"))
    experiment.run(folder, Path(out) / "runs", seed)
    print((folder / "table.md").read_text(), end="")
    return 0
