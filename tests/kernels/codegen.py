"""Compile the Triton kernels for GPUs that are absent, as the operators launch them, and report what they take.

Run as a program, because in a process of its own Triton is not the interpreter. Writes a line of JSON for each kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

GPUS = (80, 90, 100, 120)
DTYPES = ("float32", "bfloat16", "float16", "float64")
# (N, C, h, w) and scale: the shapes that the kernels are meant for.
SHAPE, SCALE = (4, 21, 64, 64), 4


class Absent:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, gpu):
        from triton.backends.compiler import GPUTarget

        self.gpu, self.target = gpu, GPUTarget("cuda", gpu, 32)

    def get_current_device(self):
        return self.gpu  # one cache of kernels each

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


def cases(dtypes=DTYPES):
    """(name, function, arguments) of every launch to compile; tensors hold nothing."""
    import torch

    from fcn_fast import BilinearGrid, kernels

    n, c, h, w = SHAPE
    size = (h * SCALE, w * SCALE)
    interpolate = BilinearGrid.interpolate((h, w), size).numbers()
    deconvolution = BilinearGrid.deconvolution((h, w), 8, crop=4, size=(h * 8, w * 8)).numbers()
    odd = BilinearGrid.interpolate((h, w), (999, 1001)).numbers()

    def map_of(dtype, *shape, last=False):
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=getattr(torch, dtype), device="meta", memory_format=layout)

    for dtype in dtypes:
        acc = "float64" if dtype == "float64" else "float32"
        for last in (False, True):
            x, wide = map_of(dtype, *SHAPE, last=last), map_of(dtype, n, c, *size, last=last)
            target = map_of("int64" if last else "uint8", n, *size)
            weight, pixel_weight = map_of(acc, c), map_of(acc, n, *size)
            saved, total, scalar = map_of(acc, 2, n, *size), map_of(acc), map_of(acc)
            tag = f"{dtype}-{'channels_last' if last else 'contiguous'}"
            yield f"bilinear_upsample-{tag}", kernels.bilinear_upsample, (x, interpolate)
            yield f"bilinear_upsample_backward-{tag}", kernels.bilinear_upsample_backward, (wide, [h, w], interpolate)
            yield (
                f"skip_fuse-{tag}",
                kernels.skip_fuse,
                (x, map_of(dtype, n, c, h * 8 + 16, w * 8, last=last), [16, 0], deconvolution),
            )
            for smoothing, *weights in ((0.0, None, None), (0.1, weight, pixel_weight)):
                if smoothing and last:
                    continue
                plain = f"{tag}{'-weights' if smoothing else ''}"
                rest = (target, *weights)
                yield f"softmax_loss-{plain}", kernels.softmax_loss, (wide, *rest, 255, 1, smoothing, False, True)
                yield (
                    f"softmax_loss_backward-{plain}",
                    kernels.softmax_loss_backward,
                    (scalar, wide, *rest, saved, total, 255, 1, smoothing),
                )
                if not last:
                    arguments = (x, *rest, interpolate, 255, 1, smoothing, False, True)
                    yield f"upsample_softmax_loss-{plain}", kernels.upsample_softmax_loss, arguments
        x = map_of(dtype, *SHAPE)
        yield f"scale_gradient-{dtype}-contiguous", kernels.scale_gradient, (x, map_of(acc))
        if dtype != "float64":
            # Of the numbers of channels of a net, as it has them; there is nothing to pool in other layouts.
            maps = map_of(dtype, 1, 64, 506, 506, last=True), map_of(dtype, 1, 64, 262, 262, last=True)
            yield f"max_pool-{dtype}-contiguous", kernels.max_pool, maps[:1]
            yield f"max_pool-{dtype}-contiguous-frame", kernels.max_pool, (*maps, (4, 4))
        yield f"upsample_argmax-{dtype}", kernels.upsample_argmax, (x, interpolate, torch.uint8)
        if dtype in ("float32", "bfloat16"):
            # An FCN's last fusion, so small that all it reads is on its way at once; label maps of two data sets.
            fcn = BilinearGrid.deconvolution((34, 34), 2).numbers()
            skip = map_of(dtype, 1, c, 88, 88)
            yield f"skip_fuse-{dtype}-small", kernels.skip_fuse, (map_of(dtype, 1, c, 34, 34), skip, [9, 9], fcn)
            for shape, scale in (((1, 19, 128, 256), 8), ((16, 150, 128, 128), 4), ((16, 150, 128, 128), 8)):
                grid = BilinearGrid.interpolate(shape[2:], scale_factor=scale).numbers()
                name = f"upsample_argmax-{dtype}-{shape[1]}x{scale}"
                yield name, kernels.upsample_argmax, (map_of(dtype, *shape), grid, torch.uint8)
        if dtype == "float32":
            # No multiples of 16, which Triton could know of its numbers.
            small, grid = map_of(dtype, 3, 19, 17, 61), BilinearGrid.interpolate((17, 61), (68, 244)).numbers()
            yield "upsample_argmax-size", kernels.upsample_argmax, (small, grid, torch.uint8)
            rest = (map_of("uint8", 3, 68, 244), None, None, grid, 255, 1, 0.0, False, True)
            yield "upsample_softmax_loss-size", kernels.upsample_softmax_loss, (small, *rest)
            yield "bilinear_upsample-odd", kernels.bilinear_upsample, (x, odd)
            yield "bilinear_upsample-zero", kernels.bilinear_upsample, (x, deconvolution)
            yield (
                "bilinear_upsample_backward-zero",
                kernels.bilinear_upsample_backward,
                (map_of(dtype, n, c, h * 8, w * 8), [h, w], deconvolution),
            )
            yield "upsample_argmax-zero", kernels.upsample_argmax, (x, deconvolution, torch.int64)
            for scales in ((2, 4), (4, 2)):  # as many outputs a warp as _weigh leaves sums
                grid = BilinearGrid.interpolate((h, w), scale_factor=scales).numbers()
                rest = (map_of("uint8", n, h * scales[0], w * scales[1]), None, None, grid, 255, 1, 0.0, False, True)
                yield f"upsample_softmax_loss-{scales[0]}x{scales[1]}", kernels.upsample_softmax_loss, (x, *rest)
            many, rest = map_of(dtype, 2, 150, h, w, last=True), (map_of("uint8", 2, *size), None, None, interpolate)
            yield "upsample_softmax_loss-150", kernels.upsample_softmax_loss, (many, *rest, 255, 1, 0.0, False, True)
            zero = (map_of("int32", n, h * 8, w * 8), None, None, deconvolution)
            weighted = (map_of("uint8", n, *size), None, map_of(dtype, n, *size), interpolate, 255, 2, 0.0, False, True)
            yield "upsample_softmax_loss-pixel_weight", kernels.upsample_softmax_loss, (x, *weighted)
            yield "upsample_softmax_loss-zero", kernels.upsample_softmax_loss, (x, *zero, 255, 2, 0.0, False, True)
            yield "upsample_softmax_loss-none", kernels.upsample_softmax_loss, (x, *zero, 255, 0, 0.0, False, False)


def compile_case(gpu, name, function, arguments):
    """The kernels that one call launches."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(Absent(gpu))
    reports, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        reports.append({"case": name, "gpu": gpu, "kernel": self.__name__, "hash": kernel.hash, **report(kernel)})

    JITFunction.run = compile_only
    try:
        function(*arguments)
    finally:
        JITFunction.run = run
    return reports


def report(kernel):
    ptx = kernel.asm["ptx"]
    widths = {
        kind: max(
            [int(n or 1) * int(bits) for n, bits in re.findall(rf"{kind}\.global\S*?(?:\.v(\d))?\.[bufs](\d+)", ptx)],
            default=0,
        )
        for kind in ("ld", "st")
    }
    loops = {stage: carried(kernel.asm[stage]) for stage in ("ttir", "ttgir")}
    lanes = sorted(set(re.findall(r"threadsPerWarp = \[(\d+, \d+, \d+)\]", kernel.asm["ttgir"])))
    facts = {"shared": kernel.metadata.shared, "bits": widths, "carried": loops, "lanes": lanes}
    return resources(kernel.asm["cubin"]) | facts


def carried(ir):
    """How many values each loop carries from one round to the next."""
    loops = re.findall(r"= scf\.for .* iter_args\((.*?)\) ->|scf\.for ", ir)
    return [len(values.split(", ")) if values else 0 for values in loops]


def resources(cubin):
    """Registers, and bytes of stack: where a kernel spills, it is to the stack."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.search(r"REG:(\d+)", text)[1]), "stack": int(re.search(r"STACK:(\d+)", text)[1])}


def work(job):
    gpu, name = job
    (case,) = [case for case in cases() if case[0] == name]
    return compile_case(gpu, *case)


def main(arguments, processes=2):
    """Arguments are GPU:CASE; without any, everything."""
    jobs = [(int(gpu), name) for gpu, _, name in (word.partition(":") for word in arguments)]
    jobs = jobs or [(gpu, case[0]) for case in cases() for gpu in GPUS]
    with ProcessPoolExecutor(processes) as pool:
        for reports in pool.map(work, jobs):
            for line in reports:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
