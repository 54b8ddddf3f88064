"""The names of what a prediction leaves in a folder, by which its pictures are told from photos."""

KINDS = ("predictions", "overlays", "cluster_assignments", "pseudo_labels")  # folders
LIST_NAME, SHEET_NAME, UNFINISHED = "predictions.json", "contact_sheet.png", "unfinished.json"
FILES = (LIST_NAME, "pseudo_labels.json", SHEET_NAME)  # beside them, once all are written


def among(names: set[str]) -> set[str]:
    """Returns which of all names in a folder are those of a prediction."""
    is_output = "overlays" in names and names & {LIST_NAME, UNFINISHED}
    return names & {*KINDS, *FILES, UNFINISHED} if is_output else set()
