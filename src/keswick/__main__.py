"""The command `kes`, and `python -m keswick`: from here on an interrupt ends it with 1 and without a word."""

import os
import sys

try:
    import signal  # which takes its time
except KeyboardInterrupt:
    os._exit(1)


def main() -> int:
    """Run the command that the arguments name. Returns the exit code."""
    # Imports and the interpreter's own end are no place for an exception; a command cleans up when it gets one.
    _on_interrupt(_exit)
    from keswick.cli import main as run

    try:
        _on_interrupt(signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        _on_interrupt(_exit)
        from keswick.cli.terminal import clear_line

        clear_line()
        return 1
    finally:
        _on_interrupt(_exit)


def _on_interrupt(handler: "signal._HANDLER") -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell has it for what runs in the background
        signal.signal(signal.SIGINT, handler)


def _exit(*_: object) -> None:
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
