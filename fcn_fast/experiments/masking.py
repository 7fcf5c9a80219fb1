"""Masking: what a net makes of the foreground, the background and the shape alone."""

from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from fcn_fast.experiments.report import write
from fcn_fast.experiments.runs import held_out, masked, perform, tuned
from fcn_fast.experiments.upsampling import FIXED
from fcn_fast.train import evaluate
from fcn_fast.train.pictures import to_picture

__all__ = ["EXPERIMENT"]

# What is hidden where so much is seen.
_HIDDEN = {
    "all": (),
    "foreground only": ("background",),
    "background only": ("foreground",),
    "shape only": ("foreground", "background"),
}
# (seen in training, seen in the test): mean IU without background on VOC.
_PUBLISHED = {
    ("all", "all"): 0.848,
    ("all", "foreground only"): 0.810,
    ("all", "background only"): 0.198,
    ("foreground only", "foreground only"): 0.761,
    ("background only", "background only"): 0.378,
    ("shape only", "shape only"): 0.291,
}


@dataclass(frozen=True)
class _Masking:
    name: str = "masking"
    title: str = "Masking: mean IU of the objects' classes"
    claim: str = "Nets look at the object, learn from its surroundings where they see no more, and learn shape alone."

    def run(self, folder, runs, seed=0):
        """Do the runs that are not done, and write the table and the figure; returns the rows."""
        rows = []
        for (seen, tested), published in _PUBLISHED.items():
            run = tuned("fcn8s-" + seen.replace(" ", "-"), mask=_HIDDEN[seen]) if _HIDDEN[seen] else FIXED
            matrix = evaluate(perform(run.seeded(seed), runs).model, held_out(_HIDDEN[tested]), batch=8)
            mean_iu = matrix.iu[1:].nanmean().item()
            rows.append({"seen in training": seen, "seen in the test": tested, "mean IU": round(mean_iu, 4)})
            rows[-1]["published, VOC"] = published
        write(folder, self, rows, seed)
        _draw(folder / "figure.png", self.title, rows)
        return rows


def _draw(path, title, rows):
    """The mean IUs as bars, and a picture in the four maskings."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    labels = [f"{row['seen in training']} / {row['seen in the test']}" for row in rows]
    for offset, name in ((-0.2, "mean IU"), (0.2, "published, VOC")):
        left.barh([place + offset for place in range(len(rows))], [row[name] for row in rows], 0.4, label=name)
    left.set_yticks(range(len(rows)), labels)
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.legend(frameon=False, fontsize=8)
    left.spines[["top", "right"]].set_visible(False)
    left.set_title("training / test", loc="left", size=10)
    right.imshow(_sheet())
    right.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.savefig(path)


def _sheet():
    """The first held-out picture as each masking shows it, two by two."""
    x, target = held_out()[0]
    tiles = [to_picture(masked(x, target, hidden)) for hidden in _HIDDEN.values()]
    side = tiles[0].width
    sheet = Image.new("RGB", (2 * side + 4, 2 * side + 4), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % 2 * (side + 4), place // 2 * (side + 4)))
    return sheet


EXPERIMENT = _Masking()
