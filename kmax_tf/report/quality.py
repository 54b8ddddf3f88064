"""The quality of a prediction in words."""

GROUPS = (("All", ""), ("Things", "_things"), ("Stuff", "_stuff"))


def quality_text(metrics: dict) -> str:
    """Returns PQ with that of things and stuff: "PQ 79.8 (things 68.9, stuff 96.2)"."""
    all_, things, stuff = (short(metrics["PQ" + suffix]) for _, suffix in GROUPS)
    return f"PQ {all_} (things {things}, stuff {stuff})"


def short(percent: float | None) -> str:
    """Formats with one decimal; None becomes a dash."""
    return "-" if percent is None else f"{percent:.1f}"


def baseline_text(baseline: dict) -> str:
    """Returns a line about the trivial baseline of baseline.json."""
    return (
        f"trivial baseline ({baseline['name']}): {quality_text(baseline)},"
        f" on the first {baseline['num_images']} images"
    )
