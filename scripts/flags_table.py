"""Prints the README's table of flags, from the settings themselves."""

import dataclasses

from tfsimclr.settings.config import Config


def table() -> str:
    """Returns a Markdown table: flag, default, meaning."""
    rows = ["| flag | default | what it sets |", "|---|---|---|"]
    for field in dataclasses.fields(Config):
        default = "by data or optimizer" if field.default is None else field.default
        if isinstance(default, bool):
            default = str(default).lower()
        meaning = field.metadata["help"].replace("|", "\\|")
        if field.metadata["choices"]:
            meaning += " `" + "`, `".join(field.metadata["choices"]) + "`."
        rows.append(f"| `--{field.name}` | {default} | {meaning} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
