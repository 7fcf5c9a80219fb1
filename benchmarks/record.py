"""Measure this machine for the record, and render what the documentation shows of it.

    python -P benchmarks/record.py NAME            the parts that benchmarks/results/NAME lacks, then render
    python -P benchmarks/record.py NAME PART...    these parts, anew, then render
    python -P benchmarks/record.py --render-only   render: README.md, docs/benchmarks.md, and each machine's plots

NAME says what is measured, such as h100 or epyc-zen5-2-threads. Nothing else should be running. Each part is written as
it ends, so what was interrupted goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from fcn_fast.bench import command, plots, records, scripts, suites, tables
from fcn_fast.command import pick_device

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks", "results")
PLOTS = {
    "stages": "FCN-8s, stage by stage",
    "memory": "Peak memory as work grows",
    "scaling": "Time as work grows",
    "roofline": "Operations a second against operations a byte",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(suites.PARTS)}")
    parser.add_argument("--render-only", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / RESULTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(suites.PARTS)
    if unknown or not (arguments.name or arguments.render_only):
        parser.error(f"expected NAME and parts of {', '.join(suites.PARTS)}, got {' '.join(sys.argv[1:])}")
    if not arguments.render_only:
        record(arguments.results / arguments.name, arguments.parts)
    if arguments.results == ROOT / RESULTS:
        render()


def record(folder, parts):
    """Measure parts into a folder; without any, those that it lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    for part in parts or [part for part in suites.PARTS if not (folder / f"{part}.json").exists()]:
        entries, notes = suites.measure(suites.PARTS[part](device), device)
        if notes and notes[-1].startswith(suites.INTERRUPTED):
            sys.exit(f"{part}: {notes[-1]}, nothing of it is kept")
        whole = records.new(device, entries, notes)
        whole["environment"]["commit"] = scripts.commit(ROOT)
        records.save(folder / f"{part}.json", whole)
        print(f"{part}: {len(entries)} entries", *notes, sep="\n", flush=True)


def render():
    """Write everything that is made from the records."""
    for path, text in texts().items():
        path.write_text(text)
    for name, whole in machines().items():
        for plot in plots.PLOTS:
            plots.save(plot, whole, ROOT / RESULTS / name / f"{plot}.png")


def machines():
    """{name: its whole record} of the machines that are recorded, those with a GPU first."""
    found = {path.parent.name: records.load(path.parent) for path in (ROOT / RESULTS).glob("*/operations.json")}
    return dict(sorted(found.items(), key=lambda item: (item[1]["environment"]["device_type"] == "cpu", item[0])))


def texts():
    """{path: its text as the records make it} of the documents that show them."""
    found = machines()
    documents = {ROOT / "README.md": summary, ROOT / "docs" / "benchmarks.md": details}
    return {
        path: _between_marks(path, [section(*item) for item in found.items()]) for path, section in documents.items()
    }


def _between_marks(path, sections):
    text = path.read_text()
    before, begin, rest = text.partition("<!-- speed:begin -->")
    _, end, after = rest.partition("<!-- speed:end -->")
    # Without records what stands there stays.
    return before + begin + "\n" + "\n\n".join(sections) + "\n" + end + after if sections else text


def summary(name, whole):
    """What the README shows of a machine."""
    environment = whole["environment"]
    if environment["device_type"] == "cuda":
        lines = [
            f"{tables.machine(whole)}. Milliseconds of the GPU (of a CUDA graph where a call takes less than 5, else "
            "of CUDA events), and how many times as long eager PyTorch, torch.compile and a dense deconvolution take; "
            "the bytes that must be moved in that time as a share of what a copy moves (of `softmax_loss` three maps "
            "of logits, of which it moves two: so it can exceed 100%); peak memory above the inputs. Called one by one "
            "from Python, short calls wait for the CPU instead ([docs/benchmarks.md](docs/benchmarks.md) has those "
            "times).",
            tables.gpu(whole).markdown(),
            f"Recorded in `{RESULTS / name}/` by `tools/gpu_check.sh` ({environment['date']}).",
        ]
        return "\n\n".join(lines)
    lines = [
        f"{tables.machine(whole)}, float32. Milliseconds, and how many times as long eager PyTorch and torch.compile "
        "take:",
        tables.speed(whole).markdown(),
        *([tables.memory(whole).markdown()] if tables.memory(whole) else []),
        f"Recorded in `{RESULTS / name}/` by `python -P benchmarks/record.py {name}` ({environment['date']}).",
    ]
    return "\n\n".join(lines)


def details(name, whole):
    """What docs/benchmarks.md shows of a machine."""
    lines = [f"## {name}", f"{tables.machine(whole)}.", f"{tables.rates(whole)}; {tables.spread(whole)}."]
    folder = Path("..", RESULTS, name)
    lines += [f"![{text}]({folder / plot}.png)" for plot, text in PLOTS.items() if plots.PLOTS[plot][0](whole)]
    for title, table in command.sections(whole).items():
        if table:
            lines += [f"### {title}", table.markdown()]
    if whole["notes"]:
        lines += ["### Left out", "\n".join(f"- {note}" for note in whole["notes"])]
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
