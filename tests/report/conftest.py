"""The page of a run whose classes have hostile names."""

import pytest
import report_runs

from tfsimclr.report import content, page


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory):
    """Returns the page of a run whose classes have hostile names, as a file."""
    folder = report_runs.write_run(tmp_path_factory.mktemp("runs") / "run")
    path = folder / "report.html"
    html = page.run_page(
        content.read(folder), report_runs.CONFIG, report_runs.pictures(), "python <x>"
    )
    page.write(path, html)
    return path
