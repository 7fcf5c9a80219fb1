"""Classification networks as convolutions: the same scores for a training image, each window's for a larger one."""

import pytest
import torch
from torch import nn

from fcn_fast.models import convolutionalize


class Classifier(nn.Module):
    """The structure of torchvision's VGG and AlexNet, without its padding, so that windows can be cut out."""

    def __init__(self, avgpool=True, bias=True):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2), nn.Conv2d(6, 5, 3), nn.ReLU(inplace=True)
        )
        if avgpool:
            self.avgpool = nn.AdaptiveAvgPool2d((3, 4))
        features = 5 * 3 * 4 if avgpool else 5 * 3 * 3
        self.classifier = nn.Sequential(
            nn.Linear(features, 16, bias=bias), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 12), nn.ReLU(True),
            nn.Dropout(), nn.Linear(12, 7),
        )  # fmt: skip

    def forward(self, x):
        x = self.features(x)
        if hasattr(self, "avgpool"):
            x = self.avgpool(x)
        return self.classifier(torch.flatten(x, 1))


@pytest.mark.parametrize("avgpool, bias, height, width", [(True, True, 12, 14), (False, False, 12, 12)])
def test_scores_of_every_window(avgpool, bias, height, width):
    net = Classifier(avgpool, bias).double().eval()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    fcn = convolutionalize(net)
    assert not fcn.training
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(fcn(x), net(x)[:, :, None, None])

    large = torch.randn(1, 3, height + 6, width + 10, dtype=torch.float64)
    scores = fcn(large)
    assert scores.shape == (1, 7, 4, 6)  # the features' stride is 2
    for i in range(4):
        for j in range(6):
            window = large[:, :, 2 * i : 2 * i + height, 2 * j : 2 * j + width]
            torch.testing.assert_close(scores[:, :, i, j], net(window))

    with torch.no_grad():
        for parameter in fcn.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_the_first_layer_is_what_published_surgery_makes_of_it():
    net = Classifier()
    fcn = convolutionalize(net)
    assert fcn.training and fcn.classifier[0].kernel_size == (3, 4)
    assert torch.equal(fcn.classifier[0].weight.detach(), net.classifier[0].weight.detach().view(16, 5, 3, 4))
    assert [layer.kernel_size for layer in fcn.classifier if isinstance(layer, nn.Conv2d)][1:] == [(1, 1), (1, 1)]


def test_vgg16_on_meta():
    """The sizes of torchvision's VGG-16: 7x7 features, 4096 hidden, a map of 1x1 for 224 px and 9x9 for 480."""
    with torch.device("meta"):
        layers, channels = [], 3
        for out, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convs):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2, 2))
        net = nn.Module()
        net.features, net.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(7)
        net.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)
        )
        fcn = convolutionalize(net)
        assert fcn.classifier[0].weight.shape == (4096, 512, 7, 7)
        assert fcn(torch.empty(1, 3, 224, 224)).shape == (1, 1000, 1, 1)
        assert fcn(torch.empty(1, 3, 480, 480)).shape == (1, 1000, 9, 9)


def test_what_is_no_such_network_is_named():
    with pytest.raises(TypeError, match="classifier: expected a module with features.*got Linear"):
        convolutionalize(nn.Linear(3, 4))
    net = Classifier()
    net.classifier[1] = nn.BatchNorm1d(16)
    with pytest.raises(TypeError, match="classifier: expected Linear, Dropout and activations in it, got BatchNorm1d"):
        convolutionalize(net)
    net = Classifier()
    net.avgpool = nn.AdaptiveAvgPool2d(3)
    with pytest.raises(ValueError, match="takes 5 channels of 3x3 features, got one that takes 60 numbers"):
        convolutionalize(net)
    net.features = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="expected convolutions in its features, got none"):
        convolutionalize(net)
