"""Writes the page of a run, report.html, and the page of several runs."""

import pathlib
import sys
import time

from tfsimclr.data import dataset as datasets
from tfsimclr.settings.config import Config

# The page's libraries (Bokeh, scikit-learn, matplotlib) take seconds to import, so they
# are imported only where a page is written.

FILE = "report.html"
COMPARISON_FILE = "comparison.html"


def report(config: Config, dataset: datasets.DataSet, workdir: pathlib.Path) -> None:
    """Writes report.html of a run that is scored.

    Args:
        config: Resolved.
        dataset: The data of the run.
        workdir: The run folder.

    Raises:
        UserError: If the run has no result.json, or a file of it cannot be read.
    """
    from tfsimclr.report import command, content, page

    start = time.monotonic()
    record = content.read(workdir)
    html = page.run_page(
        record,
        config,
        content.pictures(config, dataset, workdir),
        command.command(config, dataset),
    )
    path = workdir / FILE
    page.write(path, html)
    print(
        f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB, "
        f"{time.monotonic() - start:.0f} s)",
        flush=True,
    )


def report_if_possible(config: Config, dataset, workdir: pathlib.Path) -> None:
    """Writes report.html; a failure is printed and ends nothing.

    The run is finished by then: its result must not depend on a page about it.
    """
    try:
        report(config, dataset, workdir)
    except Exception as error:
        print(
            f"The report was not written ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). The run is complete. Try again by "
            f"--mode=report --workdir={workdir}",
            file=sys.stderr,
        )


def compare(config: Config) -> pathlib.Path:
    """Writes comparison.html of the runs of `--compare`; returns its path.

    Args:
        config: Its `compare` and `workdir` are used.

    Raises:
        UserError: If a run has no result, or the page cannot be written.
    """
    from tfsimclr.report import comparison, page

    names = [name.strip() for name in config.compare.split(",")]
    folders = [pathlib.Path(name).expanduser().absolute() for name in names if name]
    html = comparison.comparison_page(comparison.read(folders))
    folder = pathlib.Path(config.workdir or folders[0].parent)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COMPARISON_FILE
    page.write(path, html)
    print(f"Comparison: {path}", flush=True)
    return path
