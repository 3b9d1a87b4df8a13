"""What a user can mend; apart from `types`, so that whoever only reads files loads no JAX."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend. Its text is one sentence: what is wrong, where, and what to do."""


def named(names: Sequence[str], most: int = 8) -> str:
    """`a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
