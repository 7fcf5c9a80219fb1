"""What patch did, to be read."""

from dataclasses import dataclass, field

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One line of a report.

    Attributes:
        module: the module's name in the model.
        place: its class and method, and the line of the code.
        code: what was found there.
        note: the operation in its place, or why it was left.
    """

    module: str
    place: str
    code: str
    note: str


@dataclass
class Report:
    """What :func:`fcn_fast.patch` replaced in a model, and what it knew but left as it was.

    Attributes:
        model: the class of the model.
        replaced, left: :class:`Row` s.
    """

    model: str
    replaced: list[Row] = field(default_factory=list)
    left: list[Row] = field(default_factory=list)

    def __bool__(self):
        return bool(self.replaced)

    def __str__(self):
        lines = [f"{self.model}: {len(self.replaced) or 'nothing'} replaced, {len(self.left) or 'nothing'} left"]
        if not self.replaced and not self.left:
            lines.append("no bilinear upsampling was found in the source of its modules")
        for title, rows in (("replaced", self.replaced), ("left", self.left)):
            if rows:
                lines += ["", f"{title}:", *_table(rows)]
        return "\n".join(lines)


def _table(rows):
    """The rows in columns; those that differ in the module alone are one line."""
    groups = {}
    for row in rows:
        groups.setdefault((row.place, row.code, row.note), []).append(row.module)
    cells = [(_names(modules), place, _shorter(code), note) for (place, code, note), modules in groups.items()]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    return ["  " + "  ".join(f"{cell:{w}}" for cell, w in zip(row, (*widths, 0), strict=True)) for row in cells]


def _names(modules):
    return modules[0] + (f" and {len(modules) - 1} more" if len(modules) > 1 else "")


def _shorter(code, length=60):
    return code if len(code) <= length else code[: length - 3] + "..."
