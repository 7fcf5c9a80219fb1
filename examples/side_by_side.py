"""Runs an example once a side, each in a process of its own, and prints what it took."""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch


def main(description, run, sides, numbers, **options):
    """Run an example's sides and print their losses or measures, times and peak memory in columns.

    Args:
        description: of the example, for --help.
        run: takes the side and the arguments; yields first once everything is set up and has run once, then a number
            after each step.
        sides: their names, the plain one first.
        numbers: what the numbers are.
        **options: whole-number arguments and their defaults.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(run(arguments.side, arguments))))
        return
    results = {}
    for side in sides:
        output = subprocess.check_output([sys.executable, *sys.argv, "--side", side], text=True)
        results[side] = json.loads(output.splitlines()[-1])
    width = max(12, *map(len, sides)) + 2
    print(f"step, {numbers}".ljust(20) + "".join(side.rjust(width) for side in sides))
    for step, numbers in enumerate(zip(*(result["numbers"] for result in results.values()), strict=True)):
        print(str(step).ljust(20) + "".join(f"{number:.6f}".rjust(width) for number in numbers))
    for name, unit in (("milliseconds a step", "ms"), ("peak memory", "MiB")):
        print(name.ljust(20) + "".join(f"{result[name]:.0f} {unit}".rjust(width) for result in results.values()))


def measure(steps):
    """The numbers of the steps, the time of one, and how much memory the process took at most beyond its start."""
    next(steps)
    before = peak_mib()
    start = time.perf_counter()
    numbers = list(steps)
    seconds = time.perf_counter() - start
    memory = peak_mib() - before
    return {"numbers": numbers, "milliseconds a step": 1e3 * seconds / len(numbers), "peak memory": memory}


def peak_mib():
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
