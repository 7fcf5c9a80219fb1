"""Launch every kernel twice on a GPU that is absent, and report what its driver is asked for.

Run as a program, because in a process of its own Triton is not the interpreter. Writes a line of JSON for each case:
for each call, how many launches Triton looked through, and what was launched.
"""

import json
from itertools import count

import codegen
import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Utils:
    loaded = count()

    def load_binary(self, name, kernel, shared, device):
        return 0, next(self.loaded), 32, 0, 1024  # module, function, registers, spills, most threads

    def get_device_properties(self, device):
        return {"max_shared_mem": 227 << 10}


class Recorder(codegen.Absent):
    utils = Utils()

    def __init__(self, gpu):
        super().__init__(gpu)
        self.asked, self.looked_through, run = [], 0, JITFunction.run

        def counted(*args, **kwargs):
            self.looked_through += 1
            return run(*args, **kwargs)

        JITFunction.run = counted

    def launcher_cls(self, source, metadata):
        def launcher(*arguments):
            *programs, _stream, function, _packed, _metadata, _enter, _exit = arguments[:9]
            self.asked.append([programs, function, [described(argument) for argument in arguments[9:]]])

        return launcher

    def launches(self, function, arguments):
        self.asked, self.looked_through = [], 0
        function(*arguments)
        return self.looked_through, self.asked


def described(argument):
    if isinstance(argument, torch.Tensor):
        return str(argument.dtype), list(argument.shape), argument.stride()
    return repr(argument)


def displaced(tensor):
    """A copy that begins 4 bytes past a multiple of 16."""
    line = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return line.as_strided(tensor.shape, tensor.stride(), 1)


def main():
    recorder = Recorder(90)
    driver.set_active(recorder)
    for name, function, (first, *rest) in codegen.cases(("float32",)):
        calls = [recorder.launches(function, (first, *rest)) for _ in range(2)]
        if name == "bilinear_upsample-float32-contiguous":
            calls += [recorder.launches(function, (tensor, *rest)) for tensor in (displaced(first), first)]
        print(json.dumps({"case": name, "calls": calls}), flush=True)


if __name__ == "__main__":
    main()
