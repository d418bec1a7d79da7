"""Reads the options of a program, and prints a mistake as one line.

A program defines its flags in a function of its own and ends with

    if __name__ == "__main__":
        command_line.run(define_flags, main)
"""

import os
import signal
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

import settings
from configs import default
from errors import UserError


def run(define_flags, main):
    """Calls main(options) with the flags that are set, and exits: 0, or 1 after a UserError.

    The process exits at once. To take JAX and TensorFlow apart takes 2 s, and aborts where a thread
    still imports TensorFlow.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C without a page of text
    code = 0
    try:
        main(parse(define_flags))
        sys.stdout.flush()
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 1
    except BrokenPipeError:  # what reads the output, as head does, has enough
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
        rest = options(sys.argv)[1:]
    except flags.Error as error:
        raise UserError(error) from None
    except Exception as error:  # whatever a config file may raise while it runs
        text = " ".join(str(error).split())
        if isinstance(error, (AttributeError, KeyError)) and "get_config" not in text:
            raise UserError(
                f"unknown config key: {text} (configs/default.py has every key)"
            ) from None
        raise UserError(f"--config: {type(error).__name__}: {last_line(error)}") from None
    if rest:
        raise UserError(
            f"cannot read {' '.join(rest)!r}: options have the form --name=value (see --help)"
        )
    if not options["verbosity"].present:
        # Orbax and CLU log every step they take; what ends one is raised as well.
        logging.set_verbosity(logging.FATAL)
    return options


def define_config(text):
    """Defines --config and its overrides, --config.KEY=VALUE."""
    config_flags.DEFINE_config_file("config", default.__file__, text)


def read_config(options):
    """Returns (the config that --config names, checked; the name of its file)."""
    path = Path(config_flags.get_config_filename(options["config"]))
    try:
        config = options.config.copy_and_resolve_references()
    except (AttributeError, OSError) as error:  # of a file without a config, when it is first used
        raise UserError(f"--config={path}: {last_line(error)}; configs/ has examples") from None
    settings.check(config, "--config.")
    if config.data.path and Path(config.data.path).exists():  # else it is the name of a set
        config.data.path = str(Path(config.data.path).absolute())
    return config, path.stem


def last_line(error):
    """The end of an error's text, which says what went wrong."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1]
