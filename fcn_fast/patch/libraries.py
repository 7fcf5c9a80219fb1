"""What is known of some libraries beyond the source of their methods.

- Hugging Face transformers: the loss of some families is a property of the model; image processors make label maps.
- torchvision and segmentation_models_pytorch: their models return upsampled scores, and the loss is the user's. They
  are given ``loss(images, target)`` and ``predict_labels(images)``, which never hold those.
"""

import inspect
import sys
import types

import torch
import torch.nn.functional as F
from torch import nn

from fcn_fast import ops
from fcn_fast.patch.deferred import Deferred, resize
from fcn_fast.patch.rewrite import Site, rewrite
from fcn_fast.patch.source import CannotRewriteError, names_in

__all__ = ["makes_label_maps", "members", "remarks"]

_SEMANTIC = "ForSemanticSegmentation"


def members(cls, sites, left):
    """What a twin of the class has beside its rewritten methods; what that replaces goes to sites, or to left."""
    if makes_label_maps(cls):
        sites["post_process_semantic_segmentation"] = (Site("", "argmax of upsampled logits", "upsample_argmax"),)
        return {"post_process_semantic_segmentation": post_process_semantic_segmentation}
    if cls.__name__.endswith(_SEMANTIC) and isinstance(getattr(cls, "loss_function", None), property):
        return _loss_function(cls, sites, left)
    scores = _scores_of(cls, left)
    if scores is None:
        return {}
    if taken := [name for name in ("loss", "predict_labels") if hasattr(cls, name)]:
        left[taken[0]] = "it has one of its own"
        return {}
    obstacle = _smp_obstacle if scores is _smp_scores else None
    for name, code, call in (
        ("loss", "your loss of its outputs", "model.loss(images, target)"),
        ("predict_labels", "your argmax of its outputs", "model.predict_labels(images)"),
    ):
        sites[name] = (Site("", code, call, obstacle=obstacle),)
    return {"_fcn_fast_scores": scores, "loss": loss, "predict_labels": predict_labels}


def remarks(module, operations):
    """Pairs of what a module does that stays as it was, although operations are in it, and why."""
    name, config = type(module).__name__, getattr(module, "config", None)
    if name.endswith(_SEMANTIC) and type(module).__module__.startswith("transformers."):
        if getattr(config, "num_labels", None) == 1:
            yield "its loss", "with one label it is no softmax cross entropy"
        elif "upsample_softmax_loss" not in operations:
            version = getattr(sys.modules.get("transformers"), "__version__", "of this version")
            yield "its loss", f"no upsampling into a cross entropy is found in its code (transformers {version})"


def _loss_function(cls, sites, left):
    """The property loss_function, with transformers' loss for semantic segmentation rewritten."""
    utilities = sys.modules.get("transformers.loss.loss_utils")
    theirs = getattr(utilities, "LOSS_MAPPING", {}).get(_SEMANTIC)
    forwards = [vars(base)["forward"] for base in cls.__mro__ if "forward" in vars(base)]
    if theirs is None or not any("loss_function" in names_in(forward) for forward in forwards):
        return {}
    try:
        rewritten = rewrite(theirs, takes_deferred=True)
    except CannotRewriteError as error:
        left["loss_function"] = str(error)
        return {}
    if rewritten is None:
        return {}
    inherited = cls.loss_function
    ours, sites["loss_function"] = rewritten

    def loss_function(self):
        function = inherited.fget(self)
        return ours if function is theirs else function

    return {"loss_function": property(loss_function, inherited.fset)}


def _scores_of(cls, left):
    """The function that gives the scores of a class's models before their last upsampling; None where unknown."""
    bases = {(base.__module__, base.__name__) for base in cls.__mro__}
    for known, expected, scores in _KNOWN:
        if known in bases:
            if names_in(cls.forward) <= expected:
                return scores
            left["forward"] = f"it is not the one that is known of {known[0].partition('.')[0]}'s {known[1]}"
    return None


def _torchvision_scores(self, images):
    features = self.backbone(images)
    scores = {"out": self.classifier(features["out"])}
    if self.aux_classifier is not None:
        scores["aux"] = self.aux_classifier(features["aux"])
    size = images.shape[-2:]
    return {name: resize(F.interpolate, x, size, mode="bilinear", align_corners=False) for name, x in scores.items()}


def _lraspp_scores(self, images):
    scores = self.classifier(self.backbone(images))
    return {"out": resize(F.interpolate, scores, images.shape[-2:], mode="bilinear", align_corners=False)}


def _smp_scores(self, images):
    if not torch.compiler.is_compiling():
        self.check_input_shape(images)
    features = self.encoder(images)
    star = self.decoder.forward.__code__.co_flags & inspect.CO_VARARGS  # up to its version 0.4
    convolution, upsampling, _ = self.segmentation_head
    scores = convolution(self.decoder(*features) if star else self.decoder(features))
    if isinstance(upsampling, nn.Upsample):
        options = (upsampling.size, upsampling.scale_factor, upsampling.mode, upsampling.align_corners)
        scores = resize(F.interpolate, scores, *options)
    return {"out": scores}


def _smp_obstacle(model):
    """Why the scores of a model of segmentation_models_pytorch are not known; empty where they are."""
    head = model.segmentation_head
    if getattr(model, "classification_head", None) is not None:
        return "it has a classification head"
    if not isinstance(head, nn.Sequential) or len(head) != 3 or not isinstance(head[1], (nn.Upsample, nn.Identity)):
        return "its segmentation head is not a convolution, an upsampling and an activation"
    if not isinstance(getattr(head[2], "activation", head[2]), nn.Identity):
        return "its segmentation head has an activation"
    return ""


_PLAIN = {"shape", "backbone", "classifier", "F", "nn", "functional", "interpolate", "OrderedDict"}
_SMP = {"torch", "jit", "is_scripting", "is_tracing", "is_torch_compiling", "check_input_shape", "encoder", "decoder"}
_LABEL_MAPS = {
    *("is_torch_available", "ImportError", "ValueError", "isinstance", "len", "range", "append", "shape", "unsqueeze"),
    *("torch", "torch.nn.functional", "nn", "functional", "F", "interpolate", "argmax", "logits", "Tensor", "numpy"),
    *("tolist", "SemanticSegmentationPostProcessorOutput", "segmentation"),
}
_KNOWN = (
    (
        ("torchvision.models.segmentation._utils", "_SimpleSegmentationModel"),
        _PLAIN | {"aux_classifier"},
        _torchvision_scores,
    ),
    (("torchvision.models.segmentation.lraspp", "LRASPP"), _PLAIN, _lraspp_scores),
    (
        ("segmentation_models_pytorch.base.model", "SegmentationModel"),
        _SMP | {"segmentation_head", "classification_head"},
        _smp_scores,
    ),
)


def loss(self, images, target, *, aux_weight=0.5, **options):
    """The softmax loss of images, without their upsampled scores.

    Args:
        images: (N, 3, H, W).
        target: (N, H, W) labels.
        aux_weight: of the auxiliary classifier's loss, where the model has one.
        **options: as in :func:`fcn_fast.ops.softmax_loss`; ignore_index is 255 unless given.

    Returns:
        float32, a scalar or (N, H, W).

    Raises:
        ValueError: a target of another size than the scores; and as :func:`fcn_fast.ops.softmax_loss`.
    """
    losses = {
        name: scores.loss(target, **options)
        if isinstance(scores, Deferred)
        else ops.softmax_loss(scores, target, **options)
        for name, scores in self._fcn_fast_scores(images).items()
    }
    return losses["out"] + aux_weight * losses["aux"] if "aux" in losses else losses["out"]


@torch.no_grad()
def predict_labels(self, images, dtype=torch.uint8):
    """The (N, H, W) class of every pixel of (N, 3, H, W) images, without their upsampled scores."""
    scores = self._fcn_fast_scores(images)["out"]
    if isinstance(scores, Deferred):
        return ops.upsample_argmax(scores.scores(), grid=scores.grid, dtype=dtype)
    return scores.argmax(1).to(dtype)


def makes_label_maps(cls):
    """Whether the class is an image processor that takes the argmax of upsampled logits, and does no more."""
    method = getattr(cls, "post_process_semantic_segmentation", None)
    if not isinstance(method, types.FunctionType) or not method.__module__.startswith("transformers."):
        return False
    aligned = any(constant is True for constant in inspect.unwrap(method).__code__.co_consts)
    return {"logits", "interpolate", "argmax"} <= names_in(method) <= _LABEL_MAPS and not aligned


def post_process_semantic_segmentation(self, outputs, target_sizes=None, *args, **kwargs):
    """The label maps of a model's outputs, without their upsampled scores where only labels are asked for."""
    scores = kwargs.get("return_segmentation_scores", args[0] if args else False)
    if target_sizes is None or scores or len(outputs.logits) != len(target_sizes):
        method = type(self)._fcn_fast_original.post_process_semantic_segmentation
        return method(self, outputs, target_sizes, *args, **kwargs)
    sizes = target_sizes.tolist() if hasattr(target_sizes, "tolist") else target_sizes
    return [
        ops.upsample_argmax(logits.unsqueeze(0), size=tuple(map(int, size)), dtype=torch.int64)[0]
        for logits, size in zip(outputs.logits, sizes, strict=True)
    ]
