"""What ``fcn-fast train`` takes: a TOML file, flags in its place or over it."""

import argparse
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path

from fcn_fast.command import InputError
from fcn_fast.models import VARIANTS
from fcn_fast.train.solvers import SOLVERS, Solver, option

__all__ = ["Config", "add_arguments", "read"]

_SOLVER_FIELDS = {each.name: each for each in fields(Solver) if each.name != "init"}


@dataclass(frozen=True)
class Config:
    """A training run; its fields are the flags, and the keys of the TOML file."""

    data: str = option(
        MISSING,
        "KIND:PATH of the data set, as fcn-fast eval takes; shapes or shapes:SIDE is generated; "
        "needed, here or in CONFIG",
    )
    out: str = option(
        MISSING,
        "folder of the log, the checkpoint, the weights and the pictures; needed, here or in CONFIG",
        metavar="DIR",
    )
    model: str = option("voc-fcn8s", "name of the published net", choices=tuple(VARIANTS))
    solver: str = option("", "a published net's, modern or shapes (default: the model's)", choices=tuple(SOLVERS))
    init: tuple = option((), "weights to start from, one file a stream of the net: .safetensors of any net of the "
                          "family, .caffemodel, or .pth of VGG-16 under torchvision's keys; or scratch",
                          metavar="W", nargs="+")  # fmt: skip
    init_pixels: str = option("rgb", "what a .pth was trained on", choices=("rgb", "bgr"))
    staged: bool = option(False, "train 32s, 16s and 8s in turn, as far as the model's, each from the last, in "
                           "folders of their own")  # fmt: skip
    split: str = option("train", "list of images to train on", metavar="NAME")
    skip_broken: bool = option(False, "leave out images with missing or broken files")
    val_split: str = option("", "list of images to measure on (default: the data set's own)", metavar="NAME")
    eval_every: int = option(1000, "steps between measurements; 0 for one at the end", metavar="N")
    eval_images: int = option(0, "measure on the first N images only (default: all)", metavar="N")
    checkpoint_every: int = option(1000, "steps between checkpoints", metavar="N")
    width: float = option(1.0, "multiplies the channels of the net")
    padding: str = option("caffe", "geometry of the net", choices=("caffe", "lean"))
    learned_upsampling: str = option("", "learn the upsampling filters", choices=("dense", "grouped"))
    half: bool = option(False, "write the trained weights in float16")
    seed: int = option(0, "of the first weights, the order of the images and dropout")
    workers: int = option(0, "processes that load images", metavar="N")
    device: str = option("", "default: cuda where there is a GPU", choices=("cpu", "cuda"))
    resume: bool = option(
        False,
        "go on from the checkpoint in DIR, bit for bit, without --init; to other --steps too if the schedule is fixed",
    )
    recipe: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("eval_every", "eval_images", "checkpoint_every", "seed", "workers"):
            if not 0 <= getattr(self, name) < 1 << 63:
                raise InputError(f"{name.replace('_', '-')}: expected a whole number from 0, got {getattr(self, name)}")

    def solver_of(self, model):
        """The solver of one of the nets that are trained, with the values that were given over its own.

        Raises:
            InputError: a value out of its range.
        """
        preset = SOLVERS[self.solver or model]
        try:
            return replace(preset, **self.recipe)
        except ValueError as error:
            raise InputError(str(error)) from error


def add_arguments(parser):
    """Give a parser the flags; :func:`read` makes of them a :class:`Config`."""
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="TOML file with flags' names as keys")
    for each in fields(Config):
        if each.name == "recipe":
            continue
        options = dict(each.metadata)
        if each.type is bool:
            options["action"] = "store_true"
        elif each.type is not tuple:
            options["type"] = each.type
        if isinstance(options.get("choices"), tuple) and len(options["choices"]) > 4:
            options["metavar"] = "NAME"
        if each.default not in (MISSING, "", (), False):
            options["help"] += f" (default: {each.default})"
        parser.add_argument(_flag(each.name), default=argparse.SUPPRESS, **options)
    recipe = parser.add_argument_group("in place of the solver's own values")
    for name, each in _SOLVER_FIELDS.items():
        metavar = None if "choices" in each.metadata else "X"
        recipe.add_argument(_flag(name), type=each.type, default=argparse.SUPPRESS, metavar=metavar, **each.metadata)


def read(arguments):
    """The :class:`Config` of parsed arguments: the file's values, with those of the flags over them.

    Raises:
        InputError: a file that cannot be read, a key or value that is none, or no data or out.
    """
    given = _read_toml(arguments.config) if arguments.config else {}
    given |= {name: value for name, value in vars(arguments).items() if name not in ("config", "command")}
    recipe = {name: given.pop(name) for name in list(given) if name in _SOLVER_FIELDS}
    for name in ("data", "out"):
        if name not in given:
            raise InputError(f"{name}: expected a value, by {_flag(name)} or in CONFIG, got none")
    return Config(**given, recipe=recipe)


def _read_toml(path):
    try:
        import tomllib
    except ImportError:
        raise InputError("CONFIG: expected Python 3.11 or later to read TOML, got an older one; use flags") from None
    try:
        given = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"CONFIG: expected a file that can be read, got {path} ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"CONFIG: expected TOML, got {path} ({error})") from error
    kinds = {each.name: each for each in fields(Config) if each.name != "recipe"} | _SOLVER_FIELDS
    values = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise InputError(f"CONFIG: expected keys that are flags of fcn-fast train, got {key}")
        kind = kinds[name].type
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is tuple and isinstance(value, (str, list)):
            value = tuple([value] if isinstance(value, str) else value)
        if type(value) is not kind:
            raise InputError(f"CONFIG: expected {kind.__name__} for {key}, got {value!r}")
        choices = kinds[name].metadata.get("choices")
        if choices and value not in (*choices, ""):
            raise InputError(f"CONFIG: expected one of {', '.join(choices)} for {key}, got {value!r}")
        values[name] = value
    return values


def _flag(name):
    return "--" + name.replace("_", "-")
