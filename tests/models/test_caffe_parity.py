"""Every published net against OpenCV's Caffe importer, from the same prototxt and caffemodel."""

import cv2
import numpy as np
import pytest
import torch

from fcn_fast import models

from . import caffe_nets

NARROW = 1 / 32


def opencv_scores(net, x, folder, form="layer"):
    """{top: scores} of the net as OpenCV reads and runs it."""
    (folder / "net.prototxt").write_text(net.prototxt())
    (folder / "net.caffemodel").write_bytes(caffe_nets.caffemodel(net.blobs, form))
    run = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    # No Winograd: its float32 error alone comes near what is tested.
    run.enableWinograd(False)
    inputs = ("color", "hha") if "color" in net.channels else ("data",)
    for name, part in zip(inputs, x.chunk(len(inputs), 1), strict=True):
        run.setInput(part.contiguous().numpy(), name)
    tops = [top for top in ("score", "score_sem", "score_geo") if top in net.channels]
    return dict(zip(tops, run.forward(tops), strict=True))


CASES = [(name, 47, 33) for name in caffe_nets.NETS]
CASES += [(name, 101, 130) for name in caffe_nets.NETS if name.startswith("voc")]


@pytest.mark.parametrize("name, height, width", CASES)
def test_scores_are_those_of_opencv(name, height, width, tmp_path, seed):
    net = caffe_nets.build(name, height, width, NARROW, seed)
    model = models.build(name, width=NARROW).eval()
    x = 70 * torch.randn(1, len(model.variant.channels), height, width)
    expected = opencv_scores(net, x, tmp_path)
    models.load_caffemodel(model, tmp_path / "net.caffemodel")
    with torch.no_grad():
        scores = model(x)
    scores = {f"score_{head}": part for head, part in scores.items()} if isinstance(scores, dict) else {"score": scores}
    assert scores.keys() == expected.keys()
    for top, part in scores.items():
        wanted = torch.from_numpy(expected[top])
        assert part.shape == wanted.shape == (1, part.shape[1], height, width)
        assert wanted.std() > 0.01
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_the_names_are_all():
    assert set(models.VARIANTS) == set(caffe_nets.NETS)


def test_a_wrong_crop_is_seen(tmp_path, seed):
    """That the comparison has the resolution to see one pixel."""
    net = caffe_nets.build("voc-fcn8s", 47, 33, NARROW, seed)
    net.text[-1] = net.text[-1].replace("offset: 31", "offset: 30")
    x = 70 * torch.randn(1, 3, 47, 33)
    expected = opencv_scores(net, x, tmp_path)["score"]
    model = models.build("voc-fcn8s", width=NARROW).eval()
    models.load_caffemodel(model, tmp_path / "net.caffemodel")
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() > 1e-2 * np.abs(expected).max()
