"""The exception for a mistake of the user: every program prints it as one line."""


class UserError(Exception):
    """One line: what was given, what is allowed, what to do.

    A program prints it and exits with code 1 (`command_line.run`); a notebook can catch it.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).split()))


def bad_set(path, message):
    """The UserError to raise about the set at data.path."""
    return UserError(f"data.path={path}: {message}")


def first_five(texts, separator=", "):
    """At most five of many texts in a row, and how many more there are."""
    more = [f"and {len(texts) - 5:,} more"] * (len(texts) > 5)
    return separator.join([*texts[:5], *more])
