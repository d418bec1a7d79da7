"""Reads the options of a program, and prints a mistake as one line.

A program defines its flags in a function of its own and ends with

    if __name__ == "__main__":
        command_line.run(define_flags, main)
"""

import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

import settings
from configs import default
from errors import UserError, missing_package


def run(define_flags, main):
    """Calls main(options) with the parsed flags, and exits: code 0, or 1 after a mistake.

    It exits with os._exit: an orderly shutdown of JAX and TensorFlow takes 2 s, and aborts while a
    thread still imports TensorFlow.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C exits without a traceback
    code = 0
    try:
        main(parse(define_flags))
        sys.stdout.flush()
    except (UserError, ModuleNotFoundError) as error:
        with suppress(BrokenPipeError):  # the reader closed it; the error is still said
            sys.stdout.flush()
        text = error if isinstance(error, UserError) else missing_package(error)
        print(f"error: {text}", file=sys.stderr, flush=True)
        code = 1
    except BrokenPipeError:  # the reader of the output, such as `head`, closed it
        code = 128 + signal.SIGPIPE
    os._exit(code)


def parse(define_flags):
    """Defines a program's flags, reads sys.argv and returns the FlagValues; raises UserError."""
    options = flags.FLAGS
    app.define_help_flags()
    before = set(options)
    try:
        define_flags()  # ml_collections reads its overrides from sys.argv in here
        for name in set(options) - before:
            options.register_key_flag_for_module(sys.argv[0], options[name])  # for --help
        unknown = options(sys.argv)[1:]
    except flags.Error as error:
        raise UserError(error) from None
    except Exception as error:  # whatever a config file may raise while it runs
        if isinstance(error, (AttributeError, KeyError)) and "get_config" not in str(error):
            while error.args and isinstance(error.args[0], Exception):  # ml_collections wraps one
                error = error.args[0]
            text = " ".join(" ".join(map(str, error.args)).split()).strip('"')
            text = f"unknown config key: {text} (configs/default.py has every key)"
            raise UserError(text) from None
        raise UserError(f"--config: {type(error).__name__}: {last_line(error)}") from None
    if unknown:
        text = "options have the form --name=value (see --help)"
        raise UserError(f"cannot read {' '.join(unknown)!r}: {text}")
    given = Counter(text.split("=")[0].lstrip("-") for text in sys.argv[1:])
    for name in given:  # ml_collections would join both in silence
        if given[name] > 1 and name in options and isinstance(options[name], flags.MultiFlag):
            raise UserError(f"--{name} is given {given[name]} times: give all its values at once")
    if not options["verbosity"].present:  # Orbax logs much; its errors are raised, too
        logging.set_verbosity(logging.FATAL)
    return options


def define_config(text):
    """Defines --config, with `text` as its help, and its overrides --config.KEY=VALUE."""
    config_flags.DEFINE_config_file("config", default.__file__, text)


def read_config(options):
    """Returns (checked config, name of its file without .py) of --config; raises UserError."""
    path = Path(config_flags.get_config_filename(options["config"]))
    try:
        config = options.config.copy_and_resolve_references()
    except (AttributeError, OSError) as error:  # from a file that defines no config
        raise UserError(f"--config={path}: {last_line(error)}; configs/ has examples") from None
    settings.check(config, "--config.")
    for key in ("path", "splits_of"):
        if config.data[key] and os.path.exists(config.data[key]):  # else the name of a data set
            config.data[key] = str(Path(config.data[key]).absolute())
    return config, path.stem


def last_line(error):
    """The last line of an error's text, which says what went wrong."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1]
