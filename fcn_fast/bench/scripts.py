"""What benchmarks/patch.py and benchmarks/train_step.py share: two sides of each case, recorded, shown on a page."""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from fcn_fast.bench import machine, memory

__all__ = ["commit", "environment", "main", "peaks", "render"]


def main(script, description, page, *, measure, call, device, show):
    """Run a script's command line: record ``benchmarks/results/NAME/SCRIPT.json``, and show what is recorded.

    Args:
        script: its path.
        description: its docstring.
        page: path of the page that it renders into.
        measure: from ``quick`` to the record.
        call: from a case's name, a side and ``quick`` to a function whose memory is to be measured, warm.
        device: a ``torch.device``.
        show: from the folder of all results and the page's path; writes what is made from the records.
    """
    script = Path(script).resolve()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("--render-only", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that it works")
    parser.add_argument("--results", type=Path, default=script.parent / "results", help="where the folder NAME is")
    parser.add_argument("--page", type=Path, default=page, help="what is rendered into")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(memory.growth(call(*given.peak, given.quick), device))
        return
    if not given.render_only:
        if not given.name:
            parser.error("expected NAME, got none")
        folder = given.results / given.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{script.stem}.json").write_text(json.dumps(measure(given.quick), indent=1) + "\n")
    show(given.results, given.page)


def peaks(script, case, sides, quick, *, call, device):
    """{side: MiB that a case's call holds at most beyond what is held before}; on the CPU in a process each.

    Args:
        script: path of the script, in which the process runs ``call``.
        case, sides, quick: what to call, and how.
        call, device: as in :func:`main`.
    """
    # Large blocks get pages of their own, so that a peak is not hidden by memory that an earlier step left behind.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    found = {}
    for side in sides:
        if device.type == "cuda":  # whose allocator counts
            peak = memory.growth(call(case, side, quick), device)
        else:
            command = [sys.executable, "-P", script, "--peak", case, side, *(["--quick"] if quick else [])]
            peak = float(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])
        found[side] = round(peak / 2**20, 1)
    return found


def environment(device, folder):
    """The facts of the machine, the commit of the repository that a folder is in, and the date."""
    return machine.facts(device) | {"commit": commit(folder), "date": datetime.date.today().isoformat()}


def commit(folder):
    """The commit of the repository that a folder is in; "unknown" where it is in none, or there is no git."""
    try:
        done = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def render(part, section, results, page):
    """Write a section for each machine's record of a part between the part's marks; without records nothing changes.

    Args:
        part: name of the records and of the marks.
        section: from the machine's name and its record to Markdown.
        results: folder of all machines.
        page: path of the page.
    """
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(results.glob(f"*/{part}.json"))}
    if found:
        sections = "\n\n".join(section(*item) for item in found.items())
        marks = (f"<!-- {part}:begin -->", f"<!-- {part}:end -->")
        new = f"{marks[0]}\n{sections}\n{marks[1]}"
        page.write_text(re.sub(f"{marks[0]}.*{marks[1]}", lambda _: new, page.read_text(), flags=re.DOTALL))
