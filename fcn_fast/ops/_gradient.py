"""What the backward pass of a loss does whose gradient was made with the loss: scale it and give it away."""

import torch

import fcn_fast
from fcn_fast.ops._common import FLOATS


def scaled(gradient, factor, dtype):
    """``(gradient * factor).to(dtype)``, in the gradient's own memory where that is nobody's any more.

    A loss is nearly always differentiated by 1. In place, nothing is then read or written: a GPU sees to that by
    itself, for it is no number that the host knows. A CUDA graph of a backward pass alone is so to be replayed once for
    each forward pass, as torch.cuda.make_graphed_callables does.

    Args:
        gradient: what the forward pass saved, dense.
        factor: a scalar of the loss's dtype.
        dtype: of the result.
    """
    # Of this backward pass alone: neither is the graph kept for another, nor do these stand for other tensors, as in
    # torch.compile or torch.func.
    mine = (
        type(gradient) is type(factor) is torch.Tensor
        and not factor.is_neg()
        and gradient.data_ptr() % 16 == 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._autograd._get_current_graph_task_keep_graph()
    )
    if not mine:
        return (gradient * factor).to(dtype)
    if gradient.dtype != dtype:
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
    if not gradient.is_cuda:
        return gradient if factor == 1 else gradient.mul_(factor)
    if hasattr(fcn_fast._C, "scale_gradient"):
        numbers = gradient.data_ptr(), gradient.numel(), FLOATS.index(dtype), factor.data_ptr()
        fcn_fast._C.scale_gradient(*numbers, gradient.get_device())
    else:
        fcn_fast.kernels.scale_gradient(gradient, factor)
    return gradient
