def test_upsample_softmax_loss(case, variant, measure):
    measure(case, variant)
