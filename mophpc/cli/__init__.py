"""The command line. Heavy libraries are imported inside each command."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import Any

import typer

from mophpc.cli import data, doctor, launch, people, run, schedule
from mophpc.cli.common import end_others, is_root
from mophpc.errors import InterruptError, MophpcError, RunError, UserError

COMMANDS = (
    data.prepare,
    data.inspect,
    schedule.plan,
    schedule.simulate,
    run.run,
    launch.launch,
    people.status,
    people.stop,
    people.clone,
    people.add,
    run.verify,
    run.report,
    run.export,
    doctor.doctor,
)
"""In the order of the help."""

app = typer.Typer(
    help="Model Hopper Parallelism: train many configs at once over one copy of the data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake ends it with one sentence and exit status 2."""
    status = 0
    try:
        words = sys.argv[1:] if arguments is None else arguments
        status = app(words, standalone_mode=False, obj=words) or 0
    except typer.Exit as stop:
        status = stop.exit_code
    except MophpcError as error:
        # A failure inside a run, or its interruption, has been said where it happened.
        if is_root() and not isinstance(error, RunError | InterruptError):
            print(f"mophpc: {error}", file=sys.stderr)
        status = _part(error)
    except KeyboardInterrupt:
        status = InterruptError.exit_status
        end_others(status)
    except BrokenPipeError:
        status = InterruptError.exit_status
    except OSError as error:
        what = error.strerror or str(error)
        named = "" if error.filename is None else f": '{error.filename}'"
        print(f"mophpc: {what}{named}", file=sys.stderr)
        status = UserError.exit_status
        end_others(status)
    except Exception as error:
        if hasattr(error, "format_message"):
            status = _usage(error)
        else:
            traceback.print_exc()
            status = 1
            end_others(status)
    mpi = sys.modules.get("mophpc.hop.mpi")
    if mpi is not None and mpi.has_lost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # MPI would wait for those that died
    sys.exit(status)


def _part(error: MophpcError) -> int:
    """Return this rank's exit status; end the other ranks unless they end on their own."""
    if not error.agreed:
        end_others(error.exit_status)
    elif "mophpc.hop.mpi" in sys.modules:
        # Rank 0 speaks for all, and leaves last: Open MPI reports at length a rank that failed
        # while others were still there.
        from mophpc.hop.mpi import finalize

        finalize()
        if not is_root():
            return 0
        time.sleep(0.3)
    return error.exit_status


def _usage(error: Any) -> int:
    """Show a mistake in the command line's words."""
    if is_root():
        text = error.format_message()
        bare = type(error).__name__ == "NoArgsIsHelpError"
        print(text if bare else f"mophpc: {text} (see --help)", file=sys.stderr)
    return UserError.exit_status
