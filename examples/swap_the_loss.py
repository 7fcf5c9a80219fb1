"""A plain training loop, with torch.nn.CrossEntropyLoss on upsampled scores and with fcn_fast.nn.CrossEntropyLoss.

    python examples/swap_the_loss.py

The net ends at 1/8 of the picture. The plain loop upsamples its scores and takes their loss; the other hands the scores
to the criterion as they are. The losses agree.
"""

import side_by_side
import torch
import torch.nn.functional as F
from torch import nn

import fcn_fast
from fcn_fast.data.shapes import Shapes


def layer(channels, out, stride):
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def train(side, arguments):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = nn.Sequential(layer(3, 16, 2), layer(16, 32, 2), layer(32, 64, 2), nn.Conv2d(64, arguments.classes, 1))
    net = net.to(device)
    plain = nn.CrossEntropyLoss(ignore_index=255)
    swapped = fcn_fast.nn.CrossEntropyLoss(ignore_index=255)

    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
    pictures = torch.utils.data.DataLoader(
        Shapes(arguments.size, "train", length=arguments.steps * arguments.batch), arguments.batch
    )
    net(torch.zeros(1, 3, 64, 64, device=device))
    yield
    for images, target in pictures:
        scores, target = net(images.to(device) / 64), target.to(device)
        if side == "plain":
            loss = plain(F.interpolate(scores, size=target.shape[-2:], mode="bilinear"), target)
        else:
            loss = swapped(scores, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


if __name__ == "__main__":
    side_by_side.main(__doc__, train, ("plain", "swapped"), "loss", steps=8, batch=2, size=384, classes=150)
