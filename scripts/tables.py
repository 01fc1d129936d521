"""Makes the tables of a study; see `python scripts/tables.py --help`."""

from tfsimclr.study import tables

if __name__ == "__main__":
    tables.main()
