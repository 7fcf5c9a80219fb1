"""One way to time a call, on the CPU and on a GPU."""

import itertools
import statistics
import time

import torch

__all__ = ["Call", "graph_times", "input_sets", "interleave", "statistics_of", "times"]

ROUNDS = (5, 30)  # of all variants
REPEATS = 10  # of a fast variant in a round at most
SETS = 4096  # of inputs at most, of 32 KB each
GRAPHED = 500  # calls in a CUDA graph at most
REPLAYS = (5, 50)  # of it
REPLAYED = 300.0  # ms of them


class Call:
    """A variant bound to its inputs: ``call(*call.prepare())``, of which only the call is timed.

    Args:
        function: takes the inputs.
        sets: (inputs, grad_output) pairs, taken in turn; inputs with gradients require them.
        direction: ``"forward"``, ``"backward"`` (gradients alone) or ``"both"``.
    """

    def __init__(self, function, sets, direction):
        self.function, self.direction, self.sets = function, direction, len(sets)
        self._sets = itertools.cycle(sets)

    def prepare(self):
        """The next inputs; where the gradients alone are timed, with the graph to them."""
        inputs, grad = next(self._sets)
        if self.direction != "backward":
            return inputs, grad, None
        with torch.enable_grad():
            return inputs, grad, self.function(*inputs)

    def __call__(self, inputs, grad, output):
        """[output, *gradients], as far as the direction has them."""
        with torch.set_grad_enabled(self.direction != "forward"):
            if output is None:
                output = self.function(*inputs)
            if self.direction == "forward":
                return list(output) if isinstance(output, tuple) else [output]
            grad = None if grad is None else grad.to(output.dtype)
            gradients = torch.autograd.grad(output, [x for x in inputs if x.requires_grad], grad)
        return list(gradients) if self.direction == "backward" else [output.detach(), *gradients]


def input_sets(case, device):
    """The inputs of a case; on a GPU as often as it takes to push each other out of the L2 cache."""
    torch.manual_seed(0)
    inputs, grad = case.inputs(device), case.grad_output(device)
    if case.direction != "forward":
        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    sets = [(inputs, grad)]
    if device.type == "cuda":
        size = sum(x.nbytes for x in (*inputs, grad) if x is not None)
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        for _ in range(min(3 * cache // size, SETS)):
            copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
            sets.append((copies, None if grad is None else grad.clone()))
    return sets


def interleave(calls, device, seconds):
    """Time variants in turn, so that a machine that changes its speed changes it for all.

    Each goes first in turn, and the order turns around: what a variant leaves behind, in caches and free memory, meets
    not always the same other.

    Args:
        calls: {variant: :class:`Call`}, each of which ran before.
        device: a ``torch.device``.
        seconds: of the slowest variant, within :data:`ROUNDS`.

    Returns:
        {variant: {"": [ms, ...], "event_": [ms, ...]}}, of the clock and, on CUDA, of its events. A fast variant has
        up to :data:`REPEATS` times as many.
    """
    # The better of two: how often a variant runs must not hang on one call that the machine disturbed.
    once = {variant: min(times(call, device, 2)[""]) for variant, call in calls.items()}
    slowest = max(once.values())
    rounds = int(min(max(1e3 * seconds / slowest, ROUNDS[0]), ROUNDS[1]))
    repeats = {variant: int(min(max(slowest / once[variant], 1), REPEATS)) for variant in calls}
    samples, names = {variant: {} for variant in calls}, list(calls)
    for turn in range(rounds):
        first, backwards = turn % len(names), turn // len(names) % 2
        order = names[first:] + names[:first]
        for variant in reversed(order) if backwards else order:
            for kind, values in times(calls[variant], device, repeats[variant]).items():
                samples[variant].setdefault(kind, []).extend(values)
    return samples


def times(call, device, count):
    """{"": [ms, ...]} of ``count`` calls by the clock; on CUDA "event_" too, what the GPU itself took."""
    once = _once_on_cuda if device.type == "cuda" else _once
    samples = [once(call) for _ in range(count)]
    return {kind: [sample[kind] for sample in samples] for kind in samples[0]}


def _once(call):
    prepared = call.prepare()
    start = time.perf_counter()
    call(*prepared)
    return {"": 1e3 * (time.perf_counter() - start)}


def _once_on_cuda(call):
    prepared = call.prepare()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    call(*prepared)
    end.record()
    torch.cuda.synchronize()
    return {"": 1e3 * (time.perf_counter() - start), "event_": begin.elapsed_time(end)}


def graph_times(call):
    """[ms, ...] of a call in a CUDA graph, which takes the CPU out of what is timed; on the current device.

    The graph has a call with each of the sets of inputs, so that here too they come from memory; of its time each call
    has an equal share.

    Raises:
        RuntimeError: the call cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a backward pass runs where its forward pass did
        for _ in range(3):
            call(*call.prepare())
        prepared = [call.prepare() for _ in range(min(call.sets, GRAPHED))]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for one in prepared:
            call(*one)

    def replays(count):
        # Without a wait between them, or each would begin with the time that it takes to launch.
        begins, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(count)] for _ in range(2))
        for begin, end in zip(begins, ends, strict=True):
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in zip(begins, ends, strict=True)]

    count = int(min(max(REPLAYED / min(replays(2)), REPLAYS[0]), REPLAYS[1]))
    return [whole / len(prepared) for whole in replays(count)]


def statistics_of(milliseconds):
    """{"min", "q1", "median", "q3", "max", "rounds"} of samples, in ms."""
    low, high = min(milliseconds), max(milliseconds)
    if len(milliseconds) == 1:
        quartiles = [low] * 3
    else:
        quartiles = statistics.quantiles(milliseconds, n=4, method="inclusive")
    values = dict(zip(("min", "q1", "median", "q3", "max"), (low, *quartiles, high), strict=True))
    return {**{name: float(f"{value:.5g}") for name, value in values.items()}, "rounds": len(milliseconds)}
