def test_softmax_loss(case, variant, measure):
    measure(case, variant)
