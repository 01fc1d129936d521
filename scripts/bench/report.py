"""results/bench.md, made of the JSON files of single benchmarks."""

import json
import pathlib

HEADINGS = ("What", "Against", "Wanted", "Measured", "Range of the rounds", "Rounds")
INTRODUCTION = (
    "Every figure is a ratio of two things measured in turn in one run (A B A B ...): "
    "the median of the rounds, and their range. `python scripts/bench.py all` measures "
    "all of it again, `python scripts/bench.py <benchmark>` one."
)


def render(folder: pathlib.Path, names: tuple[str, ...]) -> str:
    """Returns the report on the benchmarks that have a JSON in the folder.

    Args:
        folder: With `<benchmark>.json` files.
        names: In the order of the report.
    """
    there = [name for name in names if (folder / f"{name}.json").exists()]
    missing = [name for name in names if name not in there]
    found = [read(folder, name) for name in there]
    parts = ["# Speed", INTRODUCTION, *(section(result) for result in found)]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def read(folder: pathlib.Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def section(result: dict) -> str:
    """Returns a benchmark's heading, table, words, and where it was measured."""
    parts = [f"## {result['benchmark']}"]
    if result.get("size", "full") != "full":
        parts.append(
            f"Sizes: {result['size']}. This tests the program; it says nothing."
        )
    if result["rows"]:
        parts.append(table(HEADINGS, [cells(row) for row in result["rows"]]))
    for name, rows in result.get("tables", {}).items():
        parts.append(table((name, "Time", "Share"), rows))
    parts += result.get("paragraphs", [])
    parts += [f"Skipped: {reason}" for reason in result.get("skipped", [])]
    return "\n\n".join([*parts, origin(result)])


def origin(result: dict) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    clock = {"wall": "wall time", "cpu": "processor time"}[result.get("clock", "wall")]
    return (
        f"`{result['command']}`, {result['date']}, {result['seconds']} s; {clock}; "
        f"{machine['cpu']}, {machine['cores']} cores; {versions}; commit "
        f"{result['commit'] or 'unknown'}."
    )


def cells(row: dict) -> list[str]:
    write = row["form"].format
    measured = write(row["median"])
    good = met(row)
    if good is not None:
        measured += "" if good else " (short of it)"
    spread = f"{write(row['low'])} to {write(row['high'])}" if row["rounds"] > 1 else ""
    return [
        *(row["what"], row["against"], wanted(row), measured, spread),
        str(row["rounds"]),
    ]


def wanted(row: dict) -> str:
    write = row["form"].format
    if row["least"] is not None and row["most"] is not None:
        return f"{write(row['least'])} to {write(row['most'])}"
    if row["least"] is not None:
        return f">= {write(row['least'])}"
    return f"<= {write(row['most'])}" if row["most"] is not None else ""


def met(row: dict) -> bool | None:
    """Tells whether the median is what was wanted; None if nothing was."""
    if row["least"] is None and row["most"] is None:
        return None
    low = row["least"] is None or row["median"] >= row["least"]
    return low and (row["most"] is None or row["median"] <= row["most"])


def table(headings, rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
