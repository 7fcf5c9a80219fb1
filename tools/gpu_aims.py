"""Measure on a GPU what the project aims at, the most telling first.

    python -P tools/gpu_aims.py operations FILE.json    against eager PyTorch, and torch.compile
    python -P tools/gpu_aims.py stages FILE.json        FCN-8s, whole and by stages

The file is written after each case, so what is interrupted keeps what it has.
"""

import sys
from pathlib import Path

import torch

from fcn_fast.bench import nets, records, scripts, suites
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
BUT_COMPILE = ("eager", "grouped", "dense", "fcn_fast")
# What is to be held against torch.compile too, which takes seconds to compile.
COMPILED = ("softmax_loss", "upsample_softmax_loss", "upsample_argmax")
JOBS = [suites.Job(case, None if case.operation in COMPILED else BUT_COMPILE, 0.3) for case in AIMS]
# Whole nets first, and those in bfloat16.
STAGES = sorted(nets.stage_cases(torch.device("cuda")), key=lambda case: (case.part != "forward", case.dtype))
PARTS = {
    "operations": JOBS,
    "stages": [suites.Job(case, ("eager", "fcn_fast", "canvas"), 0.2) for case in STAGES],
}


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python -P tools/gpu_aims.py {{{','.join(PARTS)}}} FILE.json")
    if not torch.cuda.is_available():
        sys.exit("tools/gpu_aims.py: expected a GPU, found none")
    device, entries, notes = torch.device("cuda"), [], []
    for job in PARTS[sys.argv[1]]:
        found, more = suites.measure([job], device)
        entries += found
        notes += more
        whole = records.new(device, entries, notes)
        whole["environment"]["commit"] = scripts.commit(Path(__file__).parent)
        records.save(sys.argv[2], whole)
        for entry in found:
            times = {name: entry[name].get("median") for name in entry if name.endswith("milliseconds")}
            line = {"of copy": entry.get("percent_of_copy"), "peak MiB": entry["peak_bytes"] >> 20, **times}
            if line["of copy"] and times.get("graph_milliseconds"):  # what the kernels do where no launch holds them up
                line["in a graph"] = round(line["of copy"] * records.median(entry) / times["graph_milliseconds"], 1)
            print(entry["group"], entry["variant"], *(f"{k} {v}" for k, v in line.items()), sep="; ", flush=True)
        print(*more, sep="\n", flush=True)


if __name__ == "__main__":
    main()
