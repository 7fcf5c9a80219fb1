"""A kernel with all that it is launched with but its tensors."""


class Launch:
    """``kernel[programs](*tensors, *numbers, **constants)``, for the tensors of a call.

    Triton looks at every argument of every launch to find out what to compile, which takes longer than the rest of a
    call. Of launches that are kept, one for each size, only tensors differ from call to call: where another call's were
    of the same kind, what was compiled for them is launched straight away.
    """

    def __init__(self, kernel, programs, *numbers, **constants):
        # Multiply-adds are fused, as the kernels count on: Triton means to leave that off unless asked (from 3.10 on).
        self.kernel, self.numbers, self.constants = kernel, numbers, constants | {"enable_fp_fusion": True}
        self.programs = (*programs, 1, 1)[:3]
        # In the order of the kernel's parameters, without options of the compiler such as num_warps.
        self.values = [constants[name] for name in kernel.arg_names if name in constants]
        self.compiled = {}  # for each kind of tensors

    def __call__(self, *tensors):
        """Launch it on the current device, which is the tensors'. Any of them may be None."""
        kind = tuple([t if t is None else (t.dtype, t.device, t.data_ptr() % 16 == 0) for t in tensors])
        compiled = self.compiled.get(kind)
        if compiled:
            compiled[self.programs](*tensors, *self.numbers, *self.values)
        else:
            compiled = self.kernel[self.programs](*tensors, *self.numbers, **self.constants)
            self.compiled[kind] = compiled  # nothing in the interpreter
