"""The criteria give what the losses give that they stand in for, on upsampled scores."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fcn_fast import nn

CLASSES = 5
SIZES = {"lower": (5, 7), "same": (16, 20), "higher": (24, 31)}


def inputs(device, size="lower", ignore_index=255, dtype=torch.float64):
    scores = torch.randn(3, CLASSES, *SIZES[size], dtype=dtype, device=device, requires_grad=True)
    target = torch.randint(0, CLASSES, (3, 16, 20), device=device)
    target[torch.rand(target.shape, device=device) < 0.3] = ignore_index
    return scores, target


def upsample(scores, target, align_corners=False):
    return F.interpolate(scores, size=target.shape[-2:], mode="bilinear", align_corners=align_corners)


def assert_agree(actual, expected, scores):
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(expected)
    one, other = (torch.autograd.grad(loss, scores, direction, retain_graph=True)[0] for loss in (actual, expected))
    torch.testing.assert_close(one, other)


def class_weight(device):
    return torch.rand(CLASSES, dtype=torch.float64, device=device) + 0.1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_cross_entropy(size, reduction, align_corners, device):
    scores, target = inputs(device, size, ignore_index=-100)
    options = {"weight": class_weight(device), "reduction": reduction, "label_smoothing": 0.2}
    actual = nn.CrossEntropyLoss(**options, align_corners=align_corners)(scores, target)
    expected = torch.nn.CrossEntropyLoss(**options)(upsample(scores, target, align_corners), target)
    assert_agree(actual, expected, scores)


def test_cross_entropy_is_torchs_but_for_the_scores(device):
    ours = nn.CrossEntropyLoss(class_weight(device), ignore_index=2, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(class_weight(device), None, 2, None, "mean", 0.1)
    assert isinstance(ours, torch.nn.CrossEntropyLoss) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert (ours.ignore_index, ours.reduction, ours.label_smoothing) == (2, "mean", 0.1)
    assert nn.CrossEntropyLoss().ignore_index == -100 and nn.CrossEntropyLoss(size_average=False).reduction == "sum"
    scores = torch.randn(7, CLASSES, 3, 4, 5, device=device)
    target = torch.randint(0, CLASSES, (7, 3, 4, 5), device=device)
    torch.testing.assert_close(nn.CrossEntropyLoss()(scores, target), F.cross_entropy(scores, target))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_global_mean_of_one_process_is_the_mean(weighted, dtype, device):
    scores, target = inputs(device)
    target = target.to(dtype)
    weight = class_weight(device) if weighted else None
    pixels = torch.rand(target.shape, dtype=torch.float64, device=device)
    for ignore_index in (255, 1):
        for pixel_weight in (None, pixels):
            losses = [
                nn.CrossEntropyLoss(weight, ignore_index=ignore_index, global_mean=mean)(
                    scores, target.clamp(max=255 if ignore_index == 255 else CLASSES - 1), pixel_weight
                )
                for mean in (True, False)
            ]
            assert_agree(*losses, scores)


def test_global_mean_of_nothing_is_zero(device):
    scores, target = inputs(device)
    loss = nn.CrossEntropyLoss(ignore_index=255, global_mean=True)(scores, torch.full_like(target, 255))
    loss.backward()
    assert loss == 0 and (scores.grad == 0).all()


def test_global_mean_leaves_bad_labels_to_the_loss():
    scores, target = inputs("cpu")
    target[0, 0, 0] = CLASSES
    with pytest.raises(ValueError, match=f"got {CLASSES} at"):
        nn.CrossEntropyLoss(class_weight("cpu"), ignore_index=255, global_mean=True)(scores, target)


def mmseg(scores, target, weight, avg_factor, reduction, classes, avg_non_ignore):
    """Written from its documentation: pixels' losses, weighted, over all pixels or those not ignored."""
    losses = F.cross_entropy(upsample(scores, target), target, classes, reduction="none", ignore_index=255)
    losses = losses if weight is None else losses * weight
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if avg_factor is None:
        every = not avg_non_ignore and classes is None
        counted = torch.ones_like(target, dtype=torch.bool) if every else target != 255
        each = torch.ones_like(losses) if classes is None else classes[target.clamp(max=CLASSES - 1)]
        avg_factor = (each * counted).sum()
    return losses.sum() / avg_factor


@pytest.mark.parametrize("avg_non_ignore", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mmseg(reduction, weighted, avg_non_ignore, device):
    scores, target = inputs(device)
    pixels = torch.rand(target.shape, dtype=torch.float32, device=device)
    classes = class_weight(device) if weighted else None
    criterion = nn.MMSegCrossEntropyLoss(
        class_weight=classes.tolist() if weighted else None, loss_weight=0.4, avg_non_ignore=avg_non_ignore
    )
    for weight in (None, pixels):
        for avg_factor in (None, 77.0) if reduction == "mean" else (None,):
            actual = criterion(scores, target, weight, avg_factor, reduction, ignore_index=255, other=None)
            expected = 0.4 * mmseg(scores, target, weight, avg_factor, reduction, classes, avg_non_ignore)
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
    assert criterion.loss_name == "loss_ce" and not criterion.state_dict()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smooth_factor", [None, 0.3])
@pytest.mark.parametrize("ignore_index", [255, None])
def test_smp(reduction, smooth_factor, ignore_index, device):
    scores, target = inputs(device)
    if ignore_index is None:
        target = target.clamp(max=CLASSES - 1)
    criterion = nn.SoftCrossEntropyLoss(reduction, smooth_factor, ignore_index)
    log = upsample(scores, target).log_softmax(1)
    smooth = smooth_factor or 0
    own = -log.gather(1, target.clamp(max=CLASSES - 1).unsqueeze(1)).squeeze(1)
    losses = ((1 - smooth) * own + smooth * -log.mean(1)).masked_fill(target == 255, 0)
    expected = {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]
    assert_agree(criterion(scores, target), expected, scores)


def ohem(scores, target, threshold, min_kept, weight):
    """One pixel after the other, from the least probable."""
    up = upsample(scores, target)
    probability = up.detach().softmax(1).gather(1, target.clamp(max=CLASSES - 1).unsqueeze(1)).squeeze(1)
    valid = (target != 255).nonzero().tolist()
    order = sorted(valid, key=lambda at: probability[tuple(at)].item())
    kept = [at for n, at in enumerate(order) if n < min_kept or threshold and probability[tuple(at)] < threshold]
    mask = torch.zeros_like(probability)
    for at in kept:
        mask[tuple(at)] = 1
    losses = F.cross_entropy(up, target, weight, reduction="none", ignore_index=255)
    weights = mask if weight is None else mask * weight[target.clamp(max=CLASSES - 1)]
    return (losses * mask).sum() / weights.sum()


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.05, 40), (None, 40), (0.7, 100_000), (1.0, 1)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", ["lower", "same"])
def test_ohem(threshold, min_kept, weighted, size, device):
    scores, target = inputs(device, size)
    weight = class_weight(device) if weighted else None
    criterion = nn.OHEMLoss(threshold, min_kept, weight)
    expected = ohem(scores, target, threshold, min_kept * len(target), weight)
    assert_agree(criterion(scores, target), expected, scores)
    assert not criterion.hard_pixels(scores, target).requires_grad


def test_ohem_of_nothing(device):
    scores, target = inputs(device)
    assert nn.OHEMLoss()(scores, torch.full_like(target, 255)) == 0
    assert nn.OHEMLoss()(scores[:0], target[:0]) == 0


def test_ohem_keeps_its_class_weights():
    criterion = nn.OHEMLoss(weight=torch.ones(CLASSES))
    assert list(criterion.state_dict()) == ["weight"] and copy.deepcopy(criterion).threshold == 0.7


def test_sampled_pixels(device):
    scores, target = inputs(device)
    sample = nn.SamplePixels(0.25)
    generator = torch.Generator(device).manual_seed(3)
    weight = sample(target, generator)
    assert weight.shape == target.shape and set(weight.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(weight, sample(target, generator.manual_seed(3)))
    assert abs(sample(torch.zeros(400, 400, device=device)).mean() - 0.25) < 0.01
    assert (sample.eval()(target) == 1).all() and "0.25" in repr(sample)
    actual = nn.CrossEntropyLoss(ignore_index=255)(scores, target, weight)
    kept = target.masked_fill(weight == 0, 255)
    assert_agree(actual, F.cross_entropy(upsample(scores, target), kept, ignore_index=255), scores)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.CrossEntropyLoss(reduction="sum", global_mean=True), "reduction: expected 'mean'.* got 'sum'"),
        (lambda: nn.MMSegCrossEntropyLoss(use_sigmoid=True), "use_sigmoid: expected False"),
        (lambda: nn.MMSegCrossEntropyLoss(use_mask=True), "use_mask: expected False"),
        (lambda: nn.SoftCrossEntropyLoss(dim=-1), "dim: expected 1"),
        (lambda: nn.OHEMLoss(threshold=1.5), "threshold: expected a probability"),
        (lambda: nn.OHEMLoss(min_kept=0), "min_kept: expected at least 1, got 0"),
        (lambda: nn.SamplePixels(0), "probability: expected a number above 0 up to 1, got 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_inputs():
    scores, target = inputs("cpu")
    criterion = nn.MMSegCrossEntropyLoss()
    with pytest.raises(ValueError, match="avg_factor: expected None"):
        criterion(scores, target, avg_factor=3, reduction_override="sum")
    with pytest.raises(ValueError, match="reduction: expected"):
        criterion(scores, target, reduction_override="median")
    with pytest.raises(TypeError, match="target: expected"):
        nn.CrossEntropyLoss()(scores, torch.rand_like(scores))
    with pytest.raises(ValueError, match="target: expected shape"):
        nn.CrossEntropyLoss()(scores, target[:2])
