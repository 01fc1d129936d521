"""How scores without labels rank runs; see `label_free_table.py --help`."""

from tfsimclr.study import label_free_table

if __name__ == "__main__":
    label_free_table.main()
