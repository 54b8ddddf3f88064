"""Writes docs/python.md, the reference of the calls of Python, from their docstrings.

scripts/python_reference.py
"""

import inspect
import re
import textwrap

from kmax_tf import command_line

PAGE = "docs/python.md"
INTRO = """# Reference of the calls of Python

`scripts/python_reference.py` makes this page from the docstrings. [README](../README.md#in-python)
has the calls in their order, and [predict.md](predict.md) what prediction does with your images.
"""


def parse():
    return command_line.Parser(__doc__).parse_args()


def main(options):
    from kmax_tf.files import write_atomic

    write_atomic(PAGE, text())
    print(f"wrote {PAGE}")


def text():
    """Returns the page."""
    import kmax_tf
    from kmax_tf.predict import Segment, Segmentation, Segmenter

    calls = [kmax_tf.train, kmax_tf.evaluate, kmax_tf.load]
    model = [Segmenter, Segmenter.predict, Segmenter.predict_to_coco]
    result = [Segmentation, Segmentation.overlay, Segmentation.to_supervision, Segment]
    return "\n".join([INTRO, *map(section, [*calls, *model, *result])])


def section(entry):
    """Returns the section of a function or class."""
    name, text = entry.__qualname__, as_markdown(inspect.getdoc(entry))
    if not inspect.isfunction(entry):
        return f"## {name}\n\n{text}\n"
    place = "" if "." in name else "kmax_tf."
    return f"## {place}{name}\n\n```python\n{signature(entry)}\n```\n\n{text}\n"


def signature(call):
    """Returns the signature, with a line for each parameter if it is long."""
    found = inspect.signature(call)
    shown = [p for name, p in found.parameters.items() if name != "self"]
    line = f"{call.__name__}{found.replace(parameters=shown)}"
    line = re.sub(r"'?\b(?:\w+\.)+([A-Z]\w+)'?", r"\1", line)  # without modules of types
    if len(line) <= 88:
        return line
    head, inner, end = re.fullmatch(r"(\w+\()(.*)(\) -> .*)", line).groups()
    return f"{head}\n    " + inner.replace(", ", ",\n    ") + f",\n{end}"


def as_markdown(docstring):
    """Turns the sections of a docstring in Google's style into lists."""
    head, *sections = re.split(r"\n\n(Args|Attributes|Returns|Raises):\n", docstring)
    parts = [head]
    for title, body in zip(sections[::2], sections[1::2]):
        body = textwrap.dedent(body)
        if title != "Returns":
            body = re.sub(r"(?m)^(\w+): ", r"* `\1`: ", body)
        parts.append(f"**{title}**\n\n{body}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    command_line.run(main, parse)
