"""``fcn-fast train``: a training run with its log, checkpoints and pictures, in one process or several."""

import contextlib
import copy
import csv
import itertools
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from fcn_fast import models
from fcn_fast.command import InputError, pick_device, writable_folder
from fcn_fast.data import open_data
from fcn_fast.data.transforms import TRANSFORMS
from fcn_fast.train import checkpoint
from fcn_fast.train.loop import Trainer, evaluate
from fcn_fast.train.solvers import initialise

__all__ = ["run"]

_KEPT = ("model", "data", "split", "seed", "width", "padding", "learned_upsampling")
_COLUMNS = {"step": int, "images": int, "lr": float, "loss": float, "mean_iu": float}


def run(config):
    """Train as a :class:`fcn_fast.train.config.Config` says.

    Under torchrun each process takes its share of the micro-batches, on its own GPU where there are GPUs.

    Returns:
        0.

    Raises:
        InputError: a value, weights, data or a folder that cannot be used; a loss that is no number.
    """
    with _processes(config.device) as device:
        if not config.staged:
            _train(config, Path(config.out), config.init, device)
            return 0
        family, _, stride = config.model.rpartition("-")
        nets = [f"{family}-fcn{each}s" for each in (32, 16, 8)]
        if config.model not in nets:
            raise InputError(f"staged: expected a net with a 32s of its family, got {config.model}")
        init = config.init
        for name in nets[: nets.index(config.model) + 1]:
            init = (_train(replace(config, model=name), Path(config.out) / name, init, device),)
    return 0


@contextlib.contextmanager
def _processes(device):
    """The device of this process, in the process group of torchrun if there is one."""
    device = pick_device(device or None)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Losses and gradients lie on the GPU, confusion matrices on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _train(config, out, init, device):
    """Train one net in a folder; returns the path of its weights."""
    if _rank() == 0:
        writable_folder(out)
    checkpoint_, weights = out / "checkpoint.safetensors", out / "weights.safetensors"
    if checkpoint_.exists() and not config.resume:
        raise InputError(f"out: expected a folder without a checkpoint, or --resume to go on from it, got {out}")
    if weights.exists() and not checkpoint_.exists():
        raise InputError(f"out: expected a folder without weights, or with their checkpoint too, got {out}")
    solver, transform = config.solver_of(config.model), TRANSFORMS[models.VARIANTS[config.model].transform]
    data = _open(config, config.split, transform)
    held_out = _open(config, config.val_split or None, transform)
    if config.resume and checkpoint_.exists():
        init = ("scratch",)  # the checkpoint has the weights
    model = _model(config, data, solver, init).to(device, memory_format=torch.channels_last)
    try:
        trainer = Trainer(model, data, solver, seed=config.seed, workers=config.workers)
    except ValueError as error:
        raise InputError(str(error)) from error
    run = _Run(config, trainer, held_out, out)
    if config.resume:
        run.restore()
    with _writing(out):
        mean_iu = run.to_the_end()
        if _rank() == 0:
            models.save_safetensors(copy.deepcopy(model).half() if config.half else model, weights)
            print(f"{weights}: {config.model}, mean IU {mean_iu:.4f} on held-out images")
    if dist.is_initialized():
        dist.barrier()
    return weights


def _open(config, split, transform):
    data = open_data(config.data, split, transform, "skip" if config.skip_broken else "error")
    skipped = getattr(data, "skipped", {})
    if skipped and _rank() == 0:
        print(f"{data.split}: skipped {len(skipped):,} images, the first: {next(iter(skipped.values()))}")
    return data


@contextlib.contextmanager
def _writing(out):
    """Says so in one line where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"out: expected space for what training writes, got {out} ({error}); a checkpoint that was there is kept"
        ) from error


class _Run:
    """A trainer with its folder: the log of every step, checkpoints, measurements and pictures.

    Of several processes the first writes.
    """

    def __init__(self, config, trainer, held_out, out):
        self.config, self.trainer, self.held_out, self.out = config, trainer, held_out, out
        self.log, self.checkpoint = out / "log.csv", out / "checkpoint.safetensors"
        self.rows = []
        # What a run that goes on must have in common with the one that was stopped.
        self.facts = {name: getattr(config, name) for name in _KEPT} | asdict(trainer.solver)
        self.facts["images"] = len(trainer.data)

    def restore(self):
        """Go on from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        solver = self.trainer.solver
        found = checkpoint.load(self.checkpoint, self.trainer.model, self.trainer.optimizer)
        if solver.schedule == "fixed" and not self.config.staged and solver.steps >= found["step"]:
            found["steps"] = solver.steps  # no learning rate depends on it
        for name, value in self.facts.items():
            if found.get(name) != value:
                raise InputError(
                    f"resume: expected {name} {found.get(name)}, as {self.checkpoint} was trained, got {value}"
                )
        self.trainer.step = found["step"]
        if _rank() == 0:
            self.rows = _read_log(self.log, self.trainer.step)
            print(f"{self.out}: goes on at step {self.trainer.step:,} of {solver.steps:,}", flush=True)

    def to_the_end(self):
        """Advance to the last step; returns the last mean IU."""
        first, steps = _rank() == 0, self.trainer.solver.steps
        mean_iu = next((row["mean_iu"] for row in reversed(self.rows) if row["mean_iu"] is not None), None)
        if first:
            _write_log(self.log, self.rows)
        with (
            open(self.log if first else os.devnull, "a", newline="") as file,
            tqdm(total=steps, initial=self.trainer.step, unit="step", disable=None if first else True) as progress,
        ):
            while self.trainer.step < steps:
                try:
                    loss, lr = self.trainer.advance()
                except InputError as error:
                    if first and self.trainer.step:
                        self._save(file)
                    done = f"; {self.trainer.step:,} steps are kept, to go on from with --resume"
                    raise InputError(f"{error}{done * (self.trainer.step > 0)}") from error
                step = self.trainer.step
                if not math.isfinite(loss):
                    raise InputError(
                        f"lr: expected one at which the loss stays finite, got a loss of {loss} at step {step}"
                    )
                measured = self._measure() if self._is_due(self.config.eval_every) else None
                mean_iu = mean_iu if measured is None else measured
                shown = f"loss {loss:.4g}" + ("" if mean_iu is None else f", mean IU {mean_iu:.3f}")
                progress.set_postfix_str(shown, refresh=False)
                progress.update()
                due = measured is not None or self._is_due(self.config.checkpoint_every)
                if first and progress.disable and due:  # no terminal: a log shows how far it is
                    print(f"{self.out}: step {step:,} of {steps:,}, {shown}", flush=True)
                if first:
                    self._note(file, lr, loss, measured)
        return mean_iu

    def _is_due(self, every):
        step = self.trainer.step
        return step == self.trainer.solver.steps or every > 0 and step % every == 0

    def _measure(self):
        """Mean IU; of several heads the mean of theirs."""
        matrices = evaluate(self.trainer.model, self.held_out, self.config.eval_images or None)
        matrices = list(matrices.values()) if isinstance(matrices, dict) else [matrices]
        return sum(matrix.mean_iu for matrix in matrices) / len(matrices)

    def _note(self, file, lr, loss, measured):
        """Write down a step: its row in the log, and what is due of pictures and of a checkpoint."""
        step, solver = self.trainer.step, self.trainer.solver
        row = dict(zip(_COLUMNS, (step, step * solver.batch * solver.iter_size, lr, loss, measured), strict=True))
        self.rows.append(row)
        csv.writer(file).writerow(row.values())
        if measured is not None:
            from fcn_fast.train.pictures import save_curves, save_samples  # matplotlib, only where it is used

            save_curves(self.out / "curves.png", self.rows)
            save_samples(self.out / "samples.png", self.trainer.model, self.held_out)
        if self._is_due(self.config.checkpoint_every):
            self._save(file)

    def _save(self, file):
        """Write a checkpoint, after the log of its steps."""
        file.flush()
        os.fsync(file.fileno())
        facts = self.facts | {"step": self.trainer.step}
        checkpoint.save(self.checkpoint, self.trainer.model, self.trainer.optimizer, facts)


def _model(config, data, solver, init):
    """The net with the weights that training starts from."""
    classes = (
        {head: len(names) for head, names in data.classes.items()}
        if isinstance(data.classes, dict)
        else len(data.classes)
    )
    torch.manual_seed(config.seed)
    try:
        model = models.build(
            config.model,
            classes,
            config.width,
            padding=config.padding,
            learned_upsampling=config.learned_upsampling or False,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    scratch = tuple(init) == ("scratch",) or not init and solver.init == "scratch"
    model.class_names = data.classes if isinstance(data.classes, dict) else {"": data.classes}
    initialise(model, solver, scratch)
    if scratch:
        return model
    count = len(model.variant.streams)
    if len(init) != count:
        files = f"{count} file{'s' * (count > 1)} of weights"
        raise InputError(f"init: expected {files} ({solver.init}), or scratch, got {len(init)}")
    for stream, path in zip(model.variant.streams, map(Path, init), strict=True):
        try:
            _load(model, path, stream, config.init_pixels)
        except models.WeightsError as error:
            raise InputError(f"init: {error.in_one_line()}") from error
        except OSError as error:
            raise InputError(f"init: expected a file that can be read, got {path} ({error.strerror})") from error
    return model


def _load(model, path, stream, pixels):
    if path.suffix == ".safetensors":
        models.transplant(model, models.from_safetensors(path), stream=stream)
    elif path.suffix == ".caffemodel":
        models.load_caffemodel(model, path, strict=False)
    elif path.suffix in (".pth", ".pt"):
        models.load_vgg16(model, path, pixels=pixels)
    else:
        raise InputError(f"init: expected a .safetensors, .caffemodel, .pth or .pt, or scratch, got {path}")


def _read_log(path, steps):
    """The rows of the first steps; a last line that was cut off belongs to none of them."""
    if not steps:
        return []
    try:
        with open(path, newline="") as file:
            lines = list(itertools.islice(csv.reader(file), 1, steps + 1))
        rows = [
            {name: kind(value) if value else None for (name, kind), value in zip(_COLUMNS.items(), line, strict=True)}
            for line in lines
        ]
    except (OSError, ValueError) as error:
        raise InputError(f"resume: expected the log of the checkpoint, got {path} ({error})") from error
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise InputError(f"resume: expected {steps} steps in {path}, got {len(rows)}")
    return rows


def _write_log(path, rows):
    """Leave only these rows in the log, or the log as it was."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(row.values() for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _rank():
    return dist.get_rank() if dist.is_initialized() else 0
