def test_upsample_argmax(case, variant, measure):
    measure(case, variant)
