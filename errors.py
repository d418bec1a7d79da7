"""Mistakes of the user: every program prints them as one line."""


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
    """At most five of many texts in a row, and how many more there are; can always be printed."""
    more = [f"and {len(texts) - 5:,} more"] * (len(texts) > 5)
    text = separator.join([*map(str, texts[:5]), *more])
    return text.encode(errors="backslashreplace").decode()  # a file's name may hold anything
