"""A mistake of the user is one exception, which every program prints as one line."""


class UserError(Exception):
    """One line: what was given, what is allowed, what to do.

    Raised wherever a mistake is found. A program prints it and exits with code 1
    (`command_line.run`); a notebook that imports the project survives it.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).split()))
