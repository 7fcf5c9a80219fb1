"""Call every GPU kernel, forward and backward, for a checker or a profiler to watch.

    python -P tools/gpu_calls.py [DTYPE...]            small maps, each result held against the CPU kernels in float64
    python -P tools/gpu_calls.py --large [DTYPE...]    a training step's maps, once each

Without a GPU the calls are made on the CPU.
"""

import functools
import sys

import torch

from fcn_fast import BilinearGrid, ops

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Scores 30 times as large are too steep for the fused loss's geometric progressions.
SMALL = {"low": (2, 21, 9, 11), "factor": 4, "scales": (1, 30)}
LARGE = {"low": (16, 150, 128, 128), "factor": 4, "scales": (1,)}
# In every way that csrc/cuda/softmax_loss_plan.h shares out pixels: (shape, channels_last).
LOSSES = (
    ((8, 5, 161, 208), False),
    ((2, 21, 31, 37), False),
    ((2, 21, 61, 67), True),
    ((2, 22, 31, 37), True),
    ((2, 64, 31, 37), True),
    ((2, 300, 7, 9), True),
)


def scores(shape, dtype, last):
    format = torch.channels_last if last else torch.contiguous_format
    return torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=format)


def labels(shape):
    target = torch.randint(shape[1], (shape[0], *shape[2:]), device=DEVICE, dtype=torch.int16)
    return target.masked_fill_(torch.rand(target.shape, device=DEVICE) < 0.1, 255)


def calls(dtype, last, low, factor, scales, losses):
    """(name, function, inputs) of every operation; the functions differentiate in floating-point inputs."""
    size = tuple(factor * n for n in low[2:])
    x = scores(low, dtype, last)
    grid = BilinearGrid.deconvolution(low[2:], factor, crop=factor // 2, size=size)
    for shape, layout in losses:
        if layout == last:
            inputs = [scores(shape, dtype, last), labels(shape)]
            for reduction in ("mean", "none"):
                loss = functools.partial(ops.softmax_loss, ignore_index=255, reduction=reduction)
                yield f"softmax_loss {shape} {reduction}", loss, inputs
    yield "bilinear_upsample", lambda x: ops.bilinear_upsample(x, size), [x]
    yield "skip_fuse", lambda x, skip: ops.skip_fuse(x, skip, grid=grid), [x, scores((*low[:2], *size), dtype, last)]
    for scale in scales:
        inputs = [scale * x, labels((*low[:2], *size))]
        yield f"upsample_softmax_loss x{scale}", lambda x, t: ops.upsample_softmax_loss(x, t), inputs
    yield "upsample_argmax", lambda x: ops.upsample_argmax(x, size), [x]


def run(function, inputs):
    """The output, and the inputs' gradients."""
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    output = function(*inputs)
    if not output.is_floating_point():
        return [output]
    ramp = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape) if output.dim() else 1.0
    gradients = torch.autograd.grad((output * ramp).sum(), [x for x in inputs if x.is_floating_point()])
    return [output.detach(), *gradients]


def check(name, function, inputs, dtype):
    """Whether the results are as near to float64 on the CPU as their dtype allows."""
    exact = run(function, [x.double().cpu() if x.is_floating_point() else x.cpu() for x in inputs])
    errors = []
    for actual, expected in zip(run(function, inputs), exact, strict=True):
        if not actual.is_floating_point():
            errors.append((actual.cpu() != expected).double().mean().item())
            continue
        error = (actual.double().cpu() - expected).abs().max() / expected.abs().max()
        errors.append(float("inf") if actual.isnan().any() else error.item())
    allowed = {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 8 * torch.finfo(dtype).eps)
    right = all(error <= allowed for error in errors)
    print("ok   " if right else "WRONG", name, " ".join(f"{error:.1e}" for error in errors), flush=True)
    return right


def main():
    torch.manual_seed(0)
    large = "--large" in sys.argv[1:]
    dtypes = [word for word in sys.argv[1:] if word != "--large"] or DTYPES[: 2 if large else 4]
    if unknown := set(dtypes) - set(DTYPES):
        sys.exit(f"tools/gpu_calls.py: expected dtypes of {', '.join(DTYPES)}, got {' '.join(unknown)}")
    right = True
    for dtype in (getattr(torch, name) for name in dtypes):
        for last in (False, True):
            maps = LARGE if large else SMALL
            losses = (((16, 150, 512, 512), last), ((1, 19, 1024, 2048), last)) if large else LOSSES
            for name, function, inputs in calls(dtype, last, **maps, losses=losses):
                name = f"{str(dtype).removeprefix('torch.')} {'channels_last' if last else 'contiguous'} {name}"
                try:
                    if large:
                        run(function, inputs)
                    else:
                        right &= check(name, function, inputs, dtype)
                except RuntimeError as error:  # one kernel's failure is not the others'
                    right = False
                    print("WRONG", name, str(error).splitlines()[0], flush=True)
    sys.exit(not right)


if __name__ == "__main__":
    main()
