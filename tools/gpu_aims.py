"""Measure on a GPU what the kernels aim at, the most telling first: python -P tools/gpu_aims.py FILE.json

Everything against eager PyTorch, then the losses and the label map against torch.compile too. The file is written after
each case, so what is interrupted keeps what it has.
"""

import sys

import torch

from fcn_fast.bench import records, suites
from fcn_fast.bench.cases import CITYSCAPES, FUSION, Case, Size

IMAGE = Size("image", 1, 21, 125, 125, 4)  # 500x500
TRAINING = Size("training", 16, 150, 128, 128, 4)  # 512x512
AIMS = [
    *(Case("softmax_loss", CITYSCAPES, "both", dtype=dtype) for dtype in ("float32", "bfloat16")),
    *(Case("upsample_softmax_loss", TRAINING, "both", dtype=dtype) for dtype in ("float32", "bfloat16")),
    *(Case("softmax_loss", TRAINING, "both", dtype=dtype) for dtype in ("float32", "bfloat16")),
    Case("softmax_loss", IMAGE, "both"),
    *(Case("bilinear_upsample", CITYSCAPES, way, "resize") for way in ("forward", "backward")),
    *(Case("upsample_argmax", CITYSCAPES, "forward", kind) for kind in ("smooth", "random")),
    Case("skip_fuse", FUSION, "forward", "deconvolution"),
    *(Case("softmax_loss", CITYSCAPES, "both", dtype=d, layout="channels_last") for d in ("float32", "bfloat16")),
    *(Case("bilinear_upsample", CITYSCAPES, way, "resize", "bfloat16") for way in ("forward", "backward")),
]
JOBS = [suites.Job(case, ("eager", "grouped", "dense", "fcn_fast"), 0.3) for case in AIMS]
JOBS += [suites.Job(case, seconds=0.3) for case in AIMS if "loss" in case.operation or "argmax" in case.operation]


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python -P tools/gpu_aims.py FILE.json")
    if not torch.cuda.is_available():
        sys.exit("tools/gpu_aims.py: expected a GPU, found none")
    device, entries, notes = torch.device("cuda"), [], []
    for job in JOBS:
        found, more = suites.measure([job], device)
        entries += found
        notes += more
        records.save(sys.argv[1], records.new(device, entries, notes))
        for entry in found:
            times = {name: entry[name].get("median") for name in entry if name.endswith("milliseconds")}
            line = {"of copy": entry.get("percent_of_copy"), "peak MiB": entry["peak_bytes"] >> 20, **times}
            if line["of copy"] and times.get("graph_milliseconds"):  # what the kernels do where no launch holds them up
                line["in a graph"] = round(line["of copy"] * records.median(entry) / times["graph_milliseconds"], 1)
            print(entry["group"], entry["variant"], *(f"{k} {v}" for k, v in line.items()), sep="; ", flush=True)
        print(*more, sep="\n", flush=True)


if __name__ == "__main__":
    main()
