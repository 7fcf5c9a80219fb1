def test_bilinear_upsample(case, variant, measure):
    measure(case, variant)
