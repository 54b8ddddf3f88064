"""The figures of the decoders' clusters (paper, section 4.2): lines of a table, and charts."""

from collections.abc import Sequence

from kmax_tf.report.chart import draw_chart, format_percent

FIGURES = {
    "PQ": "PQ of the assignment",
    "label_PQ": "PQ of the label, as coarse",
    "changed": "pixels that change cluster, %",
    "in_use": "clusters in use",
}
HEAD = ("decoder", *FIGURES.values())


def lines(decoders: Sequence[dict]) -> list[tuple[str, ...]]:
    """Returns the cells of a table below `HEAD`, from "decoders" of an evaluation's metrics."""
    return [
        (str(number), *(format_percent(decoder[key]) for key in FIGURES))
        for number, decoder in enumerate(decoders, start=1)
    ]


def charts(steps: Sequence[int], decoders: Sequence[Sequence[dict]], name: str = "") -> str:
    """Draws a chart of each figure that training changes, with a curve for each decoder.

    Args:
        steps: ascending.
        decoders: "decoders" of the metrics of each step; empty where there are none.
        name: what the titles begin with.

    Returns:
        HTML, empty if there is nothing to draw.
    """
    numbers = range(max(map(len, decoders), default=0))
    return "".join(
        draw_chart(
            name + title,
            steps,
            {
                f"decoder {i + 1}": [each[i][key] if i < len(each) else None for each in decoders]
                for i in numbers
            },
        )
        for key, title in FIGURES.items()
        if key != "label_PQ"
    )
