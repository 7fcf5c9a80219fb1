"""``fcn-fast demo``: FCN-8s on a photograph, with eager PyTorch and with fcn_fast, and on pictures that it knows.

The net of the stages is as wide as published, but its weights are random. A narrow one that ships with the package was
trained on generated pictures, and shows its labels beside the truth.
"""

import statistics
import time

import torch
from tqdm import tqdm

from fcn_fast import eager, ops, pictures
from fcn_fast.command import pick_device, writable_folder
from fcn_fast.data.images import PHOTO, fit, read_image, to_input
from fcn_fast.data.shapes import TRAINED, Shapes
from fcn_fast.env import cpu_name, kernel_of
from fcn_fast.models import fcn8s, from_safetensors
from fcn_fast.train import evaluate
from fcn_fast.train.pictures import save_samples

__all__ = ["run"]

CLASSES = 21
# "A Fuller Understanding of Fully Convolutional Networks", on a Maxwell Titan X, in ms.
PAPER = {"stage1": 60.0, "stage2": 18.7, "stage3": 23.0}
STAGES = {
    "stage1": "stage 1: conv1_1 to pool3",
    "stage2": "stage 2: conv4_1 to pool4",
    "stage3": "stage 3: conv5_1 to scores",
}
STEPS = {
    "upscore": "fusion and upsampling (in stage 3)",
    "loss": "loss, forward and backward",
    "labels": "label map",
}
SIDES = {"reference": eager, "fcn_fast": ops}
KNOWN = 60  # pictures that the trained net has not seen: enough of each class for a mean IU
# Both sides run the same convolutions; sums in another order differ by a few units in the last place.
SCORE_TOLERANCE = 1e-4
LABEL_TOLERANCE = 1e-3


def run(image=None, out=".", size=500, device=None, rounds=None):
    """Run the demo: print the table, write the labels, the plot and what the trained net knows.

    Args:
        image: path of a photograph; the one in the package unless given.
        out: folder of the PNGs.
        size: side in pixels to which the photograph is resized and padded.
        device: ``"cpu"`` or ``"cuda"``; cuda where there is a GPU unless given.
        rounds: how often each side is measured; 3 on the CPU and 20 on CUDA unless given.

    Returns:
        0, or 1 where fcn_fast does not agree with the reference.

    Raises:
        InputError: no image, no folder that can be written, no GPU.
    """
    device = pick_device(device)
    photo = fit(read_image(PHOTO if image is None else image), size)
    out = writable_folder(out)
    rounds = rounds or (3 if device.type == "cpu" else 20)

    torch.manual_seed(0)
    # channels_last is where PyTorch's convolutions are fastest, and both sides run the same ones.
    model = fcn8s(CLASSES).eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    x = to_input(photo).to(device, memory_format=torch.channels_last)
    _balance(model, x)
    times, results = _measure(model, x, rounds)

    print("\n".join(_header(size, device, rounds)))
    print("\n".join(_table(times)))
    agree, lines = _agreement(results)
    print("\n".join(lines))
    written = {
        "labels": pictures.save_labels(out / "fcn_fast_labels.png", photo, results["fcn_fast"]["labels"][0]),
        "stage plot": pictures.save_stages(out / "fcn_fast_stages.png", PAPER, times, STEPS, _device_name(device)),
    }
    mean_iu, written["it knows"] = _known(out / "fcn_fast_shapes.png", device)
    print(f"trained:    a narrow FCN-8s on {KNOWN} generated pictures it has not seen: mean IU {mean_iu:.3f}")
    print("\n".join(f"{what + ':':<12}{path}" for what, path in written.items()))
    return 0 if agree else 1


def _known(path, device):
    """Mean IU of the trained net on pictures of its kind; some are written with truth and prediction beside them."""
    model = from_safetensors(TRAINED).to(device, memory_format=torch.channels_last)
    data = Shapes(split="val", length=KNOWN)
    return evaluate(model, data, batch=8).mean_iu, save_samples(path, model, data)


def _balance(model, x):
    """Choose the bias of score_fr so that every class has the same mean score: random weights favour a few of them."""
    model.stage3.score_fr.bias -= _inputs(model, x)["fused"].mean((0, 2, 3))


def _measure(model, x, rounds):
    """Times in ms, {side: {stage or step: median}}, and what each side computed, {side: {name: tensor}}.

    The sides alternate and take turns in going first, so that a machine that changes its speed changes it for both.
    """
    samples = {side: {name: [] for name in (*STAGES, *STEPS)} for side in SIDES}
    results = {side: {} for side in SIDES}
    step_rounds = max(9, rounds)
    with tqdm(total=2 * (rounds + 1 + step_rounds + 1), disable=None, leave=False, desc="measuring") as progress:
        for work, given, repeat in ((_stages, x, rounds), (_steps, _inputs(model, x), step_rounds)):
            for turn in range(-1, repeat):  # the first one warms up
                for side in sorted(SIDES, reverse=turn % 2 == 0):
                    model.ops = SIDES[side]
                    results[side].update(work(model, given, _Clock(x.device, samples[side] if turn >= 0 else None)))
                    progress.update()
    medians = {side: {name: statistics.median(times) for name, times in samples[side].items()} for side in SIDES}
    for side in SIDES:
        medians[side]["all"] = sum(medians[side][stage] for stage in STAGES)
    return medians, results


@torch.no_grad()
def _stages(model, x, clock):
    pool3, score_pool3 = clock("stage1", model.stage1, x)
    pool4, score_pool4 = clock("stage2", model.stage2, pool3)
    return {"scores": clock("stage3", model.stage3, pool4, [score_pool4, score_pool3], x.shape[-2:])}


@torch.no_grad()
def _inputs(model, x):
    """What the steps start from, on both sides: the low-resolution scores of the reference, and some labels."""
    model.ops = eager
    pool3, score_pool3 = model.stage1(x)
    pool4, score_pool4 = model.stage2(pool3)
    score_fr, skips = model.stage3.deepest(pool4), [score_pool4, score_pool3]
    fused = model.stage3.fused(score_fr, skips)
    return {
        "score_fr": score_fr,
        "skips": skips,
        "fused": fused,
        # Untrained scores are in the hundreds: as they are, every pixel's softmax would be saturated.
        "logits": (fused / fused.std()).requires_grad_(),
        "target": _random_labels(x.shape[-2:], x.device),
        "grid": model.stage3.last_grid(fused, x.shape[-2:]),
    }


def _steps(model, given, clock):
    """The work around the convolutions alone."""
    logits, grid = given["logits"], given["grid"]

    def upscore():
        return model.ops.bilinear_upsample(model.stage3.fused(given["score_fr"], given["skips"]), grid=grid)

    def loss():
        value = model.ops.upsample_softmax_loss(logits, given["target"], grid=grid)
        return value.detach(), *torch.autograd.grad(value, logits)

    with torch.no_grad():
        clock("upscore", upscore)
        labels = clock("labels", model.ops.upsample_argmax, given["fused"], grid=grid)
    value, gradient = clock("loss", loss)
    return {"labels": labels, "loss": value, "gradient": gradient}


class _Clock:
    """Calls a function and appends the milliseconds that it took to a list of ``samples``, if there are samples."""

    def __init__(self, device, samples):
        self.device, self.samples = device, samples

    def __call__(self, name, function, *args, **kwargs):
        self._wait()
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self._wait()
        if self.samples is not None:
            self.samples[name].append(1e3 * (time.perf_counter() - start))
        return result

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _random_labels(size, device):
    """(1, H, W) labels, one pixel in twenty void."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (1, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = 255
    return labels.to(device)


def _header(size, device, rounds):
    kernels = {kernel_of(name, device.type) for name in ("skip_fuse", "bilinear_upsample", "upsample_argmax")}
    return [
        f"FCN-8s on VGG-16, one image of {size}x{size}, {CLASSES} classes, float32, channels_last",
        f"device:     {_device_name(device)}, torch {torch.__version__}",
        "reference:  the operations in eager PyTorch",
        f"fcn_fast:   {', '.join(sorted(kernels))}"
        + (" only: no kernel for this device" if kernels == {"PyTorch"} else ""),
        f"times:      milliseconds, median of {rounds} rounds, sides alternating; paper: Titan X (Maxwell), 500x500",
        "weights:    untrained (random, classes balanced): times hold, labels mean nothing",
        "",
    ]


def _table(times):
    total = times["fcn_fast"]["all"]
    width = max(map(len, (*STAGES.values(), *STEPS.values())))
    lines = [f"{'':<{width}}  {'paper':>7}  {'reference':>9}  {'fcn_fast':>9}  {'share':>6}  {'ratio':>6}"]
    rule = "-" * len(lines[0])

    def row(name, label, paper, share):
        reference, ours = times["reference"][name], times["fcn_fast"][name]
        paper = f"{paper:.1f}" if paper else ""
        share = f"{ours / total:.1%}" if share else ""
        reference_ms, ours_ms = (f"{value:.{1 if value >= 10 else 2}f}" for value in (reference, ours))
        return f"{label:<{width}}  {paper:>7}  {reference_ms:>9}  {ours_ms:>9}  {share:>6}  {reference / ours:>5.2f}x"

    lines += [rule, *(row(name, label, PAPER[name], True) for name, label in STAGES.items())]
    lines += [row("all", "all stages", sum(PAPER.values()), True), rule]
    lines += [row(name, label, None, name == "upscore") for name, label in STEPS.items()]
    note = "ratio: reference / fcn_fast. Stages 1 and 2 are the same convolutions on both sides: their ratio is noise."
    return [*lines, rule, note]


def _agreement(results):
    """Whether both sides computed the same, and the lines that say so."""
    reference, ours = results["reference"], results["fcn_fast"]

    def difference(name):
        return ((ours[name] - reference[name]).abs().max() / reference[name].abs().max()).item()

    differences = [difference(name) for name in ("scores", "loss", "gradient")]
    unequal = (ours["labels"] != reference["labels"]).float().mean().item()
    agree = all(value <= SCORE_TOLERANCE for value in differences) and unequal <= LABEL_TOLERANCE
    scores, loss, gradient = (f"{value:.1e}" for value in differences)
    return agree, [
        "",
        f"agreement:  {'yes' if agree else 'NO'}; largest difference relative to the largest value: scores {scores}, "
        f"loss {loss}, its gradient {gradient}",
        f"            equal labels: {1 - unequal:.4%}",
    ]


def _device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' if threads != 1 else ''}"
