def test_stages(case, variant, measure):
    """The three stages of FCN-8s at 500x500, where the paper reports 60.0, 18.7 and 23.0 ms, and the whole of it."""
    measure(case, variant)
