"""Renders results/bench.md from the JSON records of the benchmarks."""

import json
import pathlib

HEADINGS = ("What", "Against", "Target", "Measured", "Range of the rounds", "Rounds")
INTRODUCTION = (
    "Every figure is a ratio of two things measured in turn in one run (A B A B ...): "
    "the median of the rounds, and their range. `python scripts/bench all` repeats "
    "all measurements, `python scripts/bench <benchmark>` one."
)


def render(folder: pathlib.Path, names: tuple[str, ...]) -> str:
    """Returns the report on the benchmarks that have a record in the folder.

    Args:
        folder: Folder with `<benchmark>.json` files.
        names: Names of the benchmarks, in the order of the report.
    """
    present = [name for name in names if (folder / f"{name}.json").exists()]
    missing = [name for name in names if name not in present]
    sections = [section(read(folder, name)) for name in present]
    parts = ["# Speed", INTRODUCTION, *sections]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def read(folder: pathlib.Path, name: str) -> dict:
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    # Older records name the file that became this folder.
    record["command"] = record["command"].replace("scripts/bench.py", "scripts/bench")
    return record


def section(record: dict) -> str:
    """Returns a benchmark's heading, tables, paragraphs, and where it was measured."""
    parts = [f"## {record['benchmark']}"]
    if record.get("size", "full") != "full":
        parts.append(
            f"Sizes: {record['size']}. They test the program; the numbers mean nothing."
        )
    if record["rows"]:
        parts.append(table(HEADINGS, [cells(row) for row in record["rows"]]))
    if "grid" in record:
        headings, *lines = record["grid"]
        parts.append(table(headings, lines))
    for name, rows in record.get("tables", {}).items():
        parts.append(table((name, "Time", "Share"), rows))
    parts += record.get("paragraphs", [])
    parts += [f"Skipped: {reason}" for reason in record.get("skipped", [])]
    return "\n\n".join([*parts, origin(record)])


def origin(record: dict) -> str:
    """Returns the command, date, clock, machine, versions and commit of a record."""
    machine = record["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    clock = {"wall": "wall time", "cpu": "processor time"}[record.get("clock", "wall")]
    return (
        f"`{record['command']}`, {record['date']}, {record['seconds']} s; {clock}; "
        f"{machine['cpu']}, {machine['cores']} cores; {versions}; commit "
        f"{record['commit'] or 'unknown'}."
    )


def cells(row: dict) -> list[str]:
    write = row["form"].format
    measured = write(row["median"])
    if meets_target(row) is False:
        measured += " (short of it)"
    spread = f"{write(row['low'])} to {write(row['high'])}" if row["rounds"] > 1 else ""
    return [
        *(row["what"], row["against"], target(row), measured, spread),
        str(row["rounds"]),
    ]


def target(row: dict) -> str:
    """Returns the target of a row as text, "" if it has none."""
    write = row["form"].format
    if row["least"] is not None and row["most"] is not None:
        return f"{write(row['least'])} to {write(row['most'])}"
    if row["least"] is not None:
        return f">= {write(row['least'])}"
    return f"<= {write(row['most'])}" if row["most"] is not None else ""


def meets_target(row: dict) -> bool | None:
    """Returns whether the median meets the target, None if there is no target."""
    if row["least"] is None and row["most"] is None:
        return None
    low = row["least"] is None or row["median"] >= row["least"]
    return low and (row["most"] is None or row["median"] <= row["most"])


def table(headings, rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
