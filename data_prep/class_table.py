"""The table of classes of a class map: a CSV file of value, name, isthing and color."""

import csv
import io
import re

from kmax_tf import errors, files

COLUMNS = "value", "name", "isthing", "color"
FLAGS = {"": 0, "0": 0, "1": 1, "false": 0, "true": 1}


def read(path: str) -> list[dict]:
    """Reads a table of classes.

    Args:
        path: a CSV file whose first line names its columns. "value" and "name" must be there;
            "isthing", 0 or 1, and "color", as #ff8000, may be missing or empty.

    Returns:
        "categories" as of a JSON file; "id" is the value.

    Raises:
        InputError: the file is no such table; the message names the line.
    """
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text), skipinitialspace=True, restkey="more")
        names = rows.fieldnames or []
        lines = [(rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise errors.InputError(f"{path}: not a UTF-8 CSV table ({error}); save it so") from error
    if not {"value", "name"} <= set(names) <= set(COLUMNS):
        raise errors.InputError(
            f"{path}: line 1 is {','.join(names)!r:.60}; make it value,name,isthing,color"
            " (the last two are optional), comma-separated"
        )
    entries = {}
    for line, row in lines:
        entry = _entry(row, f"{path}: line {line}")
        if entry["id"] in entries:
            raise errors.InputError(f'{path}: line {line}: "value" {entry["id"]} is repeated')
        entries[entry["id"]] = entry
    if not entries:
        raise errors.InputError(f"{path}: lists no class; add a line for each")
    return list(entries.values())


def _entry(row: dict, where: str) -> dict:
    """Returns a row as an entry of "categories"."""
    if "more" in row:
        raise errors.InputError(f'{where}: has too many fields; put a name with a comma in "..."')
    row = {key: (value or "").strip() for key, value in row.items()}
    if not re.fullmatch(r"[0-9]{1,9}", row["value"]):
        raise errors.InputError(f'{where}: "value" is "{row["value"]}"; give a number from 0')
    if not row["name"]:
        raise errors.InputError(f'{where}: "name" is empty; give the class a name')
    isthing, color = row.get("isthing", "").lower(), row.get("color", "")
    if isthing not in FLAGS:
        raise errors.InputError(f'{where}: "isthing" is "{isthing}"; give 0 or 1')
    entry = {"id": int(row["value"]), "name": row["name"], "isthing": FLAGS[isthing]}
    if color:
        entry["color"] = parse_color(color, where)
    return entry


def parse_color(color: str, where: str) -> list[int]:
    """Returns the red, green and blue, 0 to 255, of a color such as #ff8000.

    Raises InputError, which names the place `where`, for another text.
    """
    if not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise errors.InputError(f'{where}: "color" is {color!r:.40}; write it as #ff8000')
    return list(bytes.fromhex(color[1:]))
