"""Memory traffic of a step by part of the model, counted from the optimized program."""

import math
import re

from kmax_tf.model.layers.recompute import SECOND_PASS

BYTES = {"pred": 1, "8": 1, "16": 2, "32": 4, "64": 8}  # of an element, by the bits in its type
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
COPIES, OTHERS = "copies between layouts", "losses, input, metrics"


def by_part(program: str) -> dict[str, tuple[int, int]]:
    """Counts the bytes that the instructions of a program read and write.

    An operand or a result counts with the padding of its layout. Loops, such as those of matching
    and accumulation, count nothing; so the sum is below the compiler's own. It is above where a
    chip fetches data ahead, as a v5e does: such data counts again.

    Args:
        program: optimized HLO as text.

    Returns:
        {part: (bytes of the forward pass, bytes of the backward pass)}, the largest part first.
        The parts of the model have the names of its layers. What the backward pass computes again
        is in its count.
    """
    entry = re.split(r"^\}", program.partition("\nENTRY ")[2], maxsplit=1, flags=re.MULTILINE)[0]
    sizes: dict[str, int] = {}
    counts: dict[str, list[int]] = {}
    for line in entry.splitlines():
        found = re.match(r"\s*(?:ROOT )?%?(\S+) = (.*?) ([\w-]+)\((.*)", line)
        if not found:
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = _size(shape)
        if operation in FREE or operation.endswith("-done"):
            continue
        operands = re.findall(r"%?([\w.-]+)", rest.partition(")")[0])
        moved = sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
        named = re.search(r'op_name="([^"]*)"', line)
        path = named[1] if named else ""
        backward = "gradient_tape" in path or SECOND_PASS in path
        counts.setdefault(_part(operation, path), [0, 0])[backward] += moved
    ordered = sorted(counts.items(), key=lambda item: -sum(item[1]))
    return {part: (forward, backward) for part, (forward, backward) in ordered}


def _part(operation, path):
    if operation.startswith("copy"):
        return COPIES
    # A part that is called more than once has a number from the second call on.
    layer = re.search(rf"(?:k_ma_x|{SECOND_PASS})/(\w+?)(?:_\d+)?\b", path)
    if layer:
        return layer[1].replace("_", " ")
    return "optimizer" if "AdamW" in path else OTHERS


def _size(shape):
    """Returns the bytes of a shape, or of all shapes of a tuple.

    A layout such as {3,0,2,1:T(4,128)(2,1)} names the axes from the innermost one, and the tile
    that the two innermost ones fill.
    """
    total = 0
    layout = r"(?:\{([\d,]*)(?::T\(([\d,]+)\))?)?"
    for kind, *lists in re.findall(rf"(pred|[a-z]+\d+)\[([\d,]*)\]{layout}", shape):
        sides, axes, tile = ([int(n) for n in filter(None, text.split(","))] for text in lists)
        for axis, unit in zip(axes, reversed(tile)):
            sides[axis] = -(-sides[axis] // unit) * unit
        total += math.prod(sides) * BYTES[kind if kind == "pred" else re.sub(r"\D", "", kind)]
    return total


def table(parts: dict[str, tuple[int, int]]) -> str:
    """Returns the counts of `by_part` as a table in Markdown, in GB."""
    sums = [sum(column) for column in zip(*parts.values())]
    lines = ["| part | forward, GB | backward, GB | sum, GB |", "|---|---|---|---|"]
    for part, both in [*parts.items(), ("all", sums)]:
        cells = (f"{value / 1e9:.2f}" for value in (*both, sum(both)))
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)
