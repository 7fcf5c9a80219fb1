"""Peak memory of the loss and of the label map on the CPU, above what their inputs take.

    python benchmarks/memory.py        prints JSON: {operation: {size: {variant: MiB, "logits": MiB}}}

Each is measured in a process of its own, as the growth of the resident set (Linux). "logits" is the size of the
low-resolution scores, to compare with. benchmarks/record.py keeps the result.
"""

import json
import subprocess
import sys

SIZES = {"voc": (1, 21, 63, 63, 8), "cityscapes": (1, 19, 128, 256, 8), "ade20k": (2, 150, 128, 128, 4)}
OPERATIONS = ("upsample_softmax_loss", "upsample_argmax")


def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak(operation, size, variant):
    """MiB above the inputs."""
    import torch

    from fcn_fast import eager, ops

    function = getattr({"eager": eager, "fcn_fast": ops}[variant], operation)
    batch, classes, height, width, stride = SIZES[size]

    def call(scores, target):
        if operation == "upsample_argmax":
            return function(scores.detach(), size=target.shape[-2:])
        loss = function(scores, target)
        return torch.autograd.grad(loss, scores)

    def inputs(height, width):
        scores = torch.randn(batch, classes, height, width, requires_grad=True)
        return scores, torch.randint(classes, (batch, height * stride, width * stride))

    call(*inputs(4, 4))  # whatever is loaded and started once
    scores, target = inputs(height, width)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts from here
    before = status("VmRSS")
    result = call(scores, target)
    del result
    return status("VmHWM") - before


def measure():
    results = {}
    for operation in OPERATIONS:
        for size, (batch, classes, height, width, _) in SIZES.items():
            row = {"logits": batch * classes * height * width * 4 / 2**20}
            for variant in ("eager", "fcn_fast"):
                command = [sys.executable, "-P", __file__, operation, size, variant]
                row[variant] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            results.setdefault(operation, {})[size] = row
    return results


if __name__ == "__main__":
    print(peak(*sys.argv[1:]) if len(sys.argv) > 1 else json.dumps(measure(), indent=1))
