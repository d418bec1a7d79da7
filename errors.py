"""Mistakes of the user: every program prints them as one line.

The programs import this first. So a package that is missing is one line, too, not a traceback.
"""

import sys


class UserError(Exception):
    """One line: what was given, what is allowed, what to do.

    A program prints it and exits with code 1 (`command_line.run`); a notebook can catch it.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).split()))


def bad_set(path, message):
    """The UserError to raise about the set at data.path."""
    return UserError(f"data.path={path}: {message}")


def missing_package(error):
    """A ModuleNotFoundError as a UserError."""
    what = f"the package {error.name} is missing" if error.name else error
    todo = "activate the environment, or pip install -r requirements-cpu.txt"
    return UserError(f"{what} in {sys.executable}: {todo}")


def say_what_is_missing(kind, error, traceback):
    """A hook for the exception that ends Python, where an import at a program's top fails."""
    if isinstance(error, ModuleNotFoundError):
        print(f"error: {missing_package(error)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def first_five(texts, separator=", "):
    """At most five of many texts in a row, and how many more there are; can always be printed."""
    more = [f"and {len(texts) - 5:,} more"] * (len(texts) > 5)
    text = separator.join([*map(str, texts[:5]), *more])
    return text.encode(errors="backslashreplace").decode()  # a file's name may hold anything


sys.excepthook = say_what_is_missing
