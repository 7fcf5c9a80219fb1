def test_predict(case, variant, measure):
    """FCN-8s from an image to its label map, and what is left of that without the convolutions."""
    measure(case, variant)
