"""Makes the table of SimCLRv2; see `python scripts/simclr_v2_table.py --help`."""

from tfsimclr.study import simclr_v2

if __name__ == "__main__":
    simclr_v2.main()
