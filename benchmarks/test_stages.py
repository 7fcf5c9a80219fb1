"""The three stages of FCN-8s at 500x500, where the paper reports 60.0, 18.7 and 23.0 ms on a Maxwell Titan X."""

import pytest
import torch

from fcn_fast import eager, models


@pytest.fixture(scope="module")
def nets(device):
    """The net over eager operations and the net over fcn_fast's, with the same weights."""
    torch.manual_seed(0)
    fast = models.fcn8s().to(device).eval()
    plain = models.fcn8s(ops=eager).to(device).eval()
    plain.load_state_dict(fast.state_dict(), assign=True)
    return plain, fast


@pytest.fixture(scope="module")
def features(nets, device):
    """The inputs of each stage for one image."""
    plain, _ = nets
    image = 50 * torch.randn(1, 3, 500, 500, device=device)
    with torch.no_grad():
        pool3, score_pool3 = plain.stage1(image)
        pool4, score_pool4 = plain.stage2(pool3)
    return [image], [pool3], [pool4, score_pool4, score_pool3]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage(stage, nets, features, measure):
    def runner(net):
        module = getattr(net, f"stage{stage}")
        return (lambda pool4, *skips: module(pool4, skips, (500, 500))) if stage == 3 else module

    plain, fast = map(runner, nets)
    functions = {"eager": plain, "compile": torch.compile(plain, dynamic=False), "fcn_fast": fast}
    measure(f"FCN-8s stage {stage}", functions, features[stage - 1], operation=f"stage{stage}")
