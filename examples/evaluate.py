"""An evaluation loop whose memory never holds full-resolution scores.

    python examples/evaluate.py

Pixel accuracy after each batch, of a net that ends at 1/8 of the picture: with its scores upsampled and their argmax
taken, and with fcn_fast.ops.upsample_argmax. The measures are the same, and as low as those of random weights are.
"""

import side_by_side
import torch
import torch.nn.functional as F
from torch import nn

from fcn_fast import ops
from fcn_fast.data.shapes import Shapes
from fcn_fast.metrics import ConfusionMatrix


@torch.inference_mode()
def evaluate(side, arguments):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 8, 8), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, arguments.classes, 1)
    )
    net = net.to(device).eval()
    matrix = ConfusionMatrix(arguments.classes)
    pictures = torch.utils.data.DataLoader(
        Shapes(arguments.size, "val", length=arguments.batches * arguments.batch), arguments.batch
    )
    net(torch.zeros(1, 3, 64, 64, device=device))
    yield
    for images, target in pictures:
        scores, target = net(images.to(device)), target.to(device)
        if side == "plain":
            labels = F.interpolate(scores, size=target.shape[-2:], mode="bilinear").argmax(1)
        else:
            labels = ops.upsample_argmax(scores, size=target.shape[-2:])
        matrix.update(labels, target)
        yield matrix.pixel_accuracy


if __name__ == "__main__":
    side_by_side.main(__doc__, evaluate, ("plain", "label map"), "accuracy", batches=6, batch=2, size=512, classes=150)
