"""Measures search; see `python scripts/embedding_quality.py --help`."""

from tfsimclr.study import embedding_quality

if __name__ == "__main__":
    embedding_quality.main()
