"""Checks that every scope and binding has an effect."""

import itertools
from collections.abc import Callable

from kmax_tf.config.names import Bound
from kmax_tf.errors import InputError, closest, nearest


def check_scopes(bound: list[Bound], is_alone: bool) -> None:
    """Checks that references have scopes of bindings, and bindings those of references.

    A file may have others, unless one that is right is near.
    """
    given = {b.scope for b in bound} - {""}
    named = {s for b in bound for scope, _ in b.references for s in _outer(scope)} - {""}
    for b in bound:
        for scope, _ in b.references:
            _check_scope(b, _outer(scope), given, "nothing is bound in the scope")
        if not (b.is_file and is_alone):  # config.gin keeps scopes of references that were replaced
            _check_scope(b, [b.scope], named, "no reference has the scope")


def _check_scope(b: Bound, scopes: list[str], known: set[str], what: str) -> None:
    """Refuses the last of `scopes` if none is known; in a file, if also a known one is near."""
    scope = scopes[-1]
    is_wrong = scope and known.isdisjoint(scopes)
    if is_wrong and (not b.is_file or closest(scope, known)):
        raise InputError(f"{b.at}: {what} {scope!r}{nearest(scope, sorted(known))}")


def _outer(scope: str) -> list[str]:
    """Returns a scope and those around it, whose bindings it takes: "a/b" -> ["a", "a/b"]."""
    return list(itertools.accumulate(scope.split("/"), "{}/{}".format))


def check_used(bound: list[Bound], target: Callable) -> None:
    """Checks that each binding outside the files reaches `target` or a part of it."""
    reached = _reached(bound, target)
    for b in bound:
        scopes = {s for scope in reached.get(b.configurable, ()) for s in ("", *_outer(scope))}
        if not b.is_file and b.scope not in scopes:
            name = "/".join(filter(None, (b.scope, b.selector)))
            raise InputError(
                f"{b.at}: nothing refers to {name}; bind a parameter to @{name}(), or leave this"
                " out"
            )


def _reached(bound: list[Bound], target: Callable) -> dict[Callable, set[str]]:
    """Returns `target` and the parts that it refers to, each with the scopes of its calls."""
    final = {(b.configurable, b.scope, b.parameter): b.references for b in bound}
    reached: dict[Callable, set[str]] = {}
    waiting = [("", target)]
    while waiting:
        scope, part = waiting.pop()
        if scope in reached.setdefault(part, set()):
            continue
        reached[part].add(scope)
        for (owner, outer, _), references in final.items():
            if owner == part and outer in ("", *_outer(scope)):
                waiting += [(own or scope, other) for own, other in references]
    return reached
