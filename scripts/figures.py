"""Draws a run as PNG files; see `python scripts/figures.py --help`."""

from tfsimclr.study import figures

if __name__ == "__main__":
    figures.main()
