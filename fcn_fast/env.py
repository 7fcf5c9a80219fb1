"""What this installation runs with: versions, devices, and the kernel of each operator."""

import importlib.metadata
import platform
from pathlib import Path

import torch

import fcn_fast

__all__ = ["cpu_name", "kernel_of", "operators", "report"]


def report():
    """The report of ``fcn-fast env``, as lines of text."""
    facts = _facts()
    rows = [
        ("fcn_fast", f"{fcn_fast.__version__}, {_compiled(facts)}"),
        ("torch", torch.__version__),
        ("triton", _triton()),
        ("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("CPU", cpu_name()),
        ("instruction set", _isa(facts)),
        ("threads", str(torch.get_num_threads())),
        ("CUDA device", _cuda_device()),
    ]
    lines = [f"{name:<16} {value}" for name, value in rows]
    kernels = [(name, kernel_of(name, "cpu"), kernel_of(name, "cuda")) for name in operators()]
    widths = [max(len(row[i]) for row in kernels) for i in (0, 1)]
    lines += ["", f"{'operator':<{widths[0]}}  {'cpu':<{widths[1]}}  cuda"]
    lines += [f"{name:<{widths[0]}}  {cpu:<{widths[1]}}  {cuda}" for name, cpu, cuda in kernels]
    reasons = [f"{device}: {why}" for device in ("cpu", "cuda") if (why := _why_off(device, facts))]
    if reasons:
        lines += ["", "PyTorch: the plain PyTorch reference, slower and with more memory, because", *reasons]
    return "\n".join(lines)


def operators():
    """The names of fcn_fast's operators, but for what softmax_loss calls only where that is CUDA C++."""
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    names = {name.partition(".")[0] for library, _, name in names if library == "fcn_fast"}
    return sorted(names - {"softmax_loss_and_gradient"})


def kernel_of(operator, device):
    """What runs an operator on ``"cpu"`` or ``"cuda"``: the kernel's kind, or "PyTorch" for the reference."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fcn_fast::{operator}", device.upper()):
        return "PyTorch"
    facts = _facts()
    if device == "cpu":
        return f"C++ ({facts['isa']})"
    return "Triton" if operator in fcn_fast.kernels.registered else "CUDA C++"


def cpu_name():
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _facts():
    return fcn_fast._C.build_facts() if fcn_fast._C else {}


def _compiled(facts):
    if not facts:
        return "no compiled module"
    cuda = f"CUDA {facts['cuda_version']} for {facts['cuda_archs']}" if facts["cuda_version"] else "no CUDA"
    return (
        f"compiled with {facts['compiler']} against torch {facts['torch_built_with']} "
        f"(runs with torch {facts['torch_abi_target']} and later), {cuda}"
    )


def _isa(facts):
    if not facts:
        return "PyTorch's own"
    return f"{facts['isa']} (compiled: {', '.join(facts['isas'])})"


def _triton():
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (a CPU build of torch brings none)" if not torch.version.cuda else "not installed"


def _cuda_device():
    if torch.version.cuda is None:
        return f"none: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"none found by torch {torch.__version__}"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"


def _why_off(device, facts):
    """Why operators run the reference on a device; nothing where all of them have kernels."""
    names = operators()
    off = [name for name in names if kernel_of(name, device) == "PyTorch"]
    if not off:
        return ""
    if not facts:
        return "fcn_fast has no compiled module (pip install . builds it)"
    if device == "cuda" and facts["cuda_missing"]:
        return f"built without CUDA kernels ({facts['cuda_missing']})"
    which = "any operator" if off == names else ", ".join(off)
    return f"this version has no kernel for {which}"
