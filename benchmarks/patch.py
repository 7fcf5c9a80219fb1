"""What fcn_fast.patch does for a training step of transformers' models: time, peak memory and numbers, recorded.

    python -P benchmarks/patch.py NAME            measure, write benchmarks/results/NAME/patch.json, render
    python -P benchmarks/patch.py --render-only   render docs/drop-in.md from what is recorded

NAME says what is measured, such as h100 or epyc-zen5-2-threads. Nothing else should be running; it takes some minutes
and needs transformers. A step is forward with labels and backward, from random weights. A model and its patched copy
take turns, on the same images and with the same dropout; the first round warms up. Peak memory is that of one step
beyond what is held before it: by a GPU's allocator, on the CPU the growth of the resident set of a process of its own
(Linux).
"""

import copy
import json
import os
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch

import fcn_fast
from fcn_fast.bench import scripts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "drop-in.md"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDES = ("plain", "patched")
CLASSES = 150
CONVNEXT_T = {
    "hidden_sizes": [96, 192, 384, 768],
    "depths": [3, 3, 9, 3],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
VIT = {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 3, "intermediate_size": 768}
TAPS = {"out_indices": [2, 4, 6, 8]}
# Of each model: its class, its configuration's, the configuration, and the images' shape.
MODELS = {
    "SegFormer-B0": ("SegformerForSemanticSegmentation", "SegformerConfig", {}, (2, 512)),
    "UperNet, ConvNeXt-T": (
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {"hidden_size": 128, "auxiliary_channels": 128, "auxiliary_in_channels": 384},
        (2, 384),
    ),
    "BEiT, 8 layers of 192": (
        "BeitForSemanticSegmentation",
        "BeitConfig",
        {**VIT, **TAPS, "image_size": 384},
        (2, 384),
    ),
    "Data2Vec, 8 layers of 192": (
        "Data2VecVisionForSemanticSegmentation",
        "Data2VecVisionConfig",
        {**VIT, **TAPS, "image_size": 384},
        (2, 384),
    ),
    "DPT, 8 layers of 192": (
        "DPTForSemanticSegmentation",
        "DPTConfig",
        {**VIT, "image_size": 384, "backbone_out_indices": [1, 3, 5, 7], "fusion_hidden_size": 128},
        (2, 384),
    ),
    "MobileViT-S, DeepLabV3": ("MobileViTForSemanticSegmentation", "MobileViTConfig", {}, (2, 512)),
    "MobileViTV2-1.0, DeepLabV3": ("MobileViTV2ForSemanticSegmentation", "MobileViTV2Config", {}, (2, 512)),
    "MobileNetV2-1.0, DeepLabV3+": ("MobileNetV2ForSemanticSegmentation", "MobileNetV2Config", {}, (2, 512)),
}
PROCESSOR = "SegFormer's label maps"
ROUNDS = 5


def build(name, quick):
    """A model with random weights, and its inputs."""
    import transformers

    kind, configuration, options, (count, size) = MODELS[name]
    size = 128 if quick else size
    if "image_size" in options:
        options = {**options, "image_size": size}
    if kind.startswith("UperNet"):
        options = {**options, "backbone_config": transformers.ConvNextConfig(**CONVNEXT_T)}
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, configuration)(num_labels=CLASSES, **options))
    images = torch.randn(count, 3, size, size)
    labels = torch.randint(0, CLASSES, (count, size, size))
    labels[torch.rand(labels.shape) < 0.1] = 255
    return model.to(DEVICE).train(), images.to(DEVICE), labels.to(DEVICE)


def step(model, images, labels):
    """The loss of a training step."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)  # of dropout
    loss = model(images, labels=labels).loss
    loss.backward()
    return loss.item()


def timed(calls, rounds):
    """Milliseconds of each call in each round, in turns; the first round is left out."""
    times = {side: [] for side in calls}
    for turn in range(rounds + 1):
        for side in sorted(calls, reverse=turn % 2 == 1):
            start = time.perf_counter()
            calls[side]()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            times[side].append(1e3 * (time.perf_counter() - start))
    return {side: [float(f"{value:.5g}") for value in values[1:]] for side, values in times.items()}


def measure_model(name, quick):
    model, images, labels = build(name, quick)
    patched = copy.deepcopy(model)
    report = fcn_fast.patch(patched)
    both = dict(zip(SIDES, (model, patched), strict=True))
    return {
        "shape": list(images.shape),
        "replaced": sorted({row.note.partition(",")[0] for row in report.replaced}),
        **differences(model, patched, images, labels),
        "milliseconds": timed(
            {side: lambda one=one: step(one, images, labels) for side, one in both.items()}, 1 if quick else ROUNDS
        ),
    }


def differences(model, patched, images, labels):
    """How far a patched step is from a plain one, and the gradients of both from one in float64; without dropout.

    Relative; a gradient is one vector of all parameters, and its length the 2-norm.
    """
    exact = copy.deepcopy(model).double()
    losses, gradients = [], []
    for one, inputs in ((exact, images.double()), (model, images), (patched, images)):
        for module in one.modules():
            if "Drop" in type(module).__name__:
                module.eval()
        losses.append(step(one, inputs, labels))
        gradients.append(torch.cat([p.grad.double().flatten() for p in one.parameters() if p.grad is not None]))
        one.train()
    exact, plain, changed = gradients
    return {
        "loss_difference": abs(losses[2] - losses[1]) / losses[1],
        "gradient_difference": _distance(changed, plain),
        "gradient_error": {"plain": _distance(plain, exact), "patched": _distance(changed, exact)},
    }


def _distance(vector, other):
    return ((vector - other).norm() / other.norm()).item()


def label_maps(quick):
    """transformers' SegFormer image processor, and scores to make label maps of."""
    import transformers

    kind = getattr(transformers, "SegformerImageProcessorPil", None) or transformers.SegformerImageProcessor
    size = 128 if quick else 512
    torch.manual_seed(0)
    scores = torch.nn.functional.interpolate(torch.randn(2, CLASSES, 8, 8), size=size // 4, mode="bicubic")
    return kind(), SimpleNamespace(logits=scores.to(DEVICE)), [(size, size)] * 2


def measure_processor(quick):
    processor, outputs, sizes = label_maps(quick)
    patched = copy.deepcopy(processor)
    fcn_fast.patch(patched)
    both = dict(zip(SIDES, (processor, patched), strict=True))
    calls = {
        side: lambda one=one: one.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        for side, one in both.items()
    }
    maps = [torch.stack(call()) for call in calls.values()]
    return {
        "shape": [2, *sizes[0]],
        "replaced": ["upsample_argmax"],
        "labels_differ": (maps[0] != maps[1]).double().mean().item(),
        "milliseconds": timed(calls, 1 if quick else 4 * ROUNDS),
    }


def warm_call(name, side, quick):
    """What the memory of a side is measured of."""
    if name == PROCESSOR:
        subject, outputs, sizes = label_maps(quick)

        def call():
            subject.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    else:
        subject, images, labels = build(name, quick)

        def call():
            step(subject, images, labels)
            subject.zero_grad(set_to_none=True)

    if side == "patched":
        fcn_fast.patch(subject)
    call()
    return call


def measure(quick):
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    found = {}
    for name in (*MODELS, PROCESSOR):
        found[name] = measure_processor(quick) if name == PROCESSOR else measure_model(name, quick)
        found[name]["peak_mib"] = scripts.peaks(__file__, name, SIDES, quick, call=warm_call, device=DEVICE)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    facts = scripts.environment(DEVICE, ROOT) | {"transformers": transformers.__version__}
    return {"environment": facts, "models": found}


def section(name, record):
    """What docs/drop-in.md shows of a machine."""
    facts = record["environment"]
    rounds = min(len(found["milliseconds"]["plain"]) for found in record["models"].values())
    lines = [
        f"### {name}",
        "",
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, transformers {facts['transformers']}, "
        f"float32, {CLASSES} classes, random weights; {facts['date']}. Medians of {rounds} steps.",
        "",
        "| | images | step, plain | patched | | peak MiB, plain | patched | loss differs by | gradient by | "
        "its error, plain | patched |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, found in record["models"].items():
        plain, patched = (statistics.median(found["milliseconds"][side]) for side in SIDES)
        memory = [f"{found['peak_mib'][side]:,.0f}" for side in SIDES]
        shape = "x".join(map(str, found["shape"]))
        if "labels_differ" in found:
            numbers = [f"{found['labels_differ']:.1%} of the labels", "", "", ""]
        else:
            errors = [found["gradient_error"][side] for side in SIDES]
            distances = [found["loss_difference"], found["gradient_difference"], *errors]
            numbers = [f"{distance:.0e}" if distance else "0" for distance in distances]
        cells = [model, shape, _time(plain), _time(patched), f"{plain / patched:.2f}x", *memory, *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(milliseconds):
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.3g} ms"


def render(results, page):
    """Write what is recorded between the marks of the page."""
    scripts.render("patch", section, results, page)


if __name__ == "__main__":
    scripts.main(__file__, __doc__, PAGE, measure=measure, call=warm_call, device=DEVICE, show=render)
