"""PASCAL VOC: its classes, its colours and the mean of its images."""

__all__ = ["CLASSES", "MEAN_BGR", "palette"]

CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()

MEAN_BGR = (104.00699, 116.66877, 122.67892)
"""The mean blue, green and red that the published nets subtract, of values from 0 to 255."""


def palette():
    """The 256 colours of VOC's label images, (red, green, blue) each: the label's bits, dealt to the three in turn."""
    return [
        tuple(sum((label >> (3 * i + channel) & 1) << (7 - i) for i in range(3)) for channel in range(3))
        for label in range(256)
    ]
