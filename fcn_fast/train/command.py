"""``fcn-fast train``: a training run with its log, checkpoints and pictures, in one process or several."""

import contextlib
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
            out = Path(config.out) / name
            _train(replace(config, model=name), out, init, device, finished="keep")
            init = (out / "weights.safetensors",)
    return 0


@contextlib.contextmanager
def _processes(device):
    """The device of this process, in the process group of torchrun if there is one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield pick_device(device or None)
        return
    device = pick_device(device or None)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _train(config, out, init, device, finished="error"):
    """Train one net in a folder."""
    solver, first = config.solver_of(config.model), _rank() == 0
    target, path, log_path = out / "weights.safetensors", out / "checkpoint.safetensors", out / "log.csv"
    if config.resume and target.exists() and finished == "keep":
        return
    if first:
        writable_folder(out)
    if path.exists() and not config.resume:
        raise InputError(f"out: expected a folder without a checkpoint, or --resume to go on from it, got {out}")
    transform = TRANSFORMS[models.VARIANTS[config.model].transform]
    data = open_data(config.data, config.split, transform)
    held_out = open_data(config.data, config.val_split or None, transform)
    model = _model(config, data, solver, init).to(device, memory_format=torch.channels_last)
    try:
        trainer = Trainer(model, data, solver, seed=config.seed, workers=config.workers)
    except ValueError as error:
        raise InputError(str(error)) from error

    facts = {"model": config.model, "data": config.data, "split": config.split, "seed": config.seed}
    facts |= {"solver": asdict(solver)}
    if config.resume and path.exists():
        trainer.step = _resume(path, trainer, facts)
    rows = _read_log(log_path, trainer.step) if first else []
    if first:
        _write_log(log_path, rows)
        if trainer.step:
            print(f"{out}: goes on at step {trainer.step:,} of {solver.steps:,}")
    done = _loop(
        config,
        trainer,
        held_out,
        rows,
        log_path,
        lambda: checkpoint.save(path, model, trainer.optimizer, facts | {"step": trainer.step}),
    )
    if first:
        models.save_safetensors(model, target)
        print(f"{target}: {config.model}, mean IU {done:.4f} on {config.val_split or 'held-out'} images")
    if dist.is_initialized():
        dist.barrier()


def _loop(config, trainer, held_out, rows, log_path, save):
    """Advance to the last step; returns the last mean IU."""
    steps, first = trainer.solver.steps, _rank() == 0
    mean_iu = next((row["mean_iu"] for row in reversed(rows) if row["mean_iu"] is not None), None)
    images = trainer.solver.batch * trainer.solver.iter_size
    with (
        tqdm(total=steps, initial=trainer.step, unit="step", disable=None if first else True) as progress,
        open(log_path, "a", newline="") if first else contextlib.nullcontext() as file,
    ):
        log = csv.writer(file) if first else None
        while trainer.step < steps:
            loss, lr = trainer.advance()
            step = trainer.step
            if not math.isfinite(loss):
                raise InputError(
                    f"lr: expected one at which the loss stays finite, got a loss of {loss} at step {step}"
                )
            measured = None
            if step == steps or config.eval_every and step % config.eval_every == 0:
                measured = mean_iu = _measure(trainer.model, held_out, config.eval_images)
            if first:
                rows.append(dict(zip(_COLUMNS, (step, step * images, lr, loss, measured), strict=True)))
                log.writerow(rows[-1].values())
                progress.set_postfix_str(
                    f"loss {loss:.4g}" + (f", mean IU {mean_iu:.3f}" if mean_iu is not None else "")
                )
                progress.update()
                if measured is not None:
                    _draw(log_path.parent, rows, trainer.model, held_out)
                if step == steps or step % config.checkpoint_every == 0:
                    file.flush()
                    os.fsync(file.fileno())
                    save()
    return mean_iu


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
    initialise(model, solver, scratch)
    if scratch:
        return model
    if len(init) != len(model.variant.streams):
        raise InputError(
            f"init: expected {len(model.variant.streams)} files of weights ({solver.init}), or scratch, got {len(init)}"
        )
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


def _resume(path, trainer, facts):
    """Load a checkpoint; returns its step."""
    found = checkpoint.load(path, trainer.model, trainer.optimizer)
    step = found.pop("step")
    if found != facts:
        # The solver's own values count one by one.
        wanted, got = ({**each, **each["solver"]} for each in (facts, found))
        name = next(name for name in wanted if name != "solver" and wanted[name] != got.get(name))
        raise InputError(f"resume: expected {name} {got.get(name)}, as {path} was trained, got {wanted[name]}")
    return step


def _measure(model, data, count):
    """Mean IU; of several heads the mean of theirs."""
    matrices = evaluate(model, data, count or None)
    matrices = list(matrices.values()) if isinstance(matrices, dict) else [matrices]
    return sum(matrix.mean_iu for matrix in matrices) / len(matrices)


def _draw(folder, rows, model, data):
    from fcn_fast.train.pictures import save_curves, save_samples

    save_curves(folder / "curves.png", rows)
    save_samples(folder / "samples.png", model, data)


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
