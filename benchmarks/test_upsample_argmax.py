import pytest


@pytest.mark.parametrize("scores", ["smooth", "random"])
def test_upsample_argmax(scores, size, device, measure_operation):
    """Scores as smooth as a network's, where few classes can win a pixel, and random ones, the worst case."""
    logits = size.smooth_scores(device) if scores == "smooth" else size.scores(device)
    measure_operation("upsample_argmax", f"{scores} {size.name} forward", [logits], size=size.pixels)
