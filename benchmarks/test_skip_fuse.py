def test_skip_fuse(case, variant, measure):
    measure(case, variant)
