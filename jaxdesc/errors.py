"""What a user can mend; apart from `types`, so that whoever only reads files loads no JAX."""


class UserError(Exception):
    """A mistake that the user can mend. Its text is one sentence: what is wrong, where, and what to do."""
