"""The FCN family."""

from fcn_fast.models.fcn import FCN, fcn8s, fcn16s, fcn32s

__all__ = ["FCN", "fcn16s", "fcn32s", "fcn8s"]
