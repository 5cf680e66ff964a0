"""The command line: `scalefield COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from scalefield import __version__
from scalefield.cli.curve import curve
from scalefield.cli.figure import figure
from scalefield.cli.kernel import kernel
from scalefield.errors import ScalefieldError

__all__ = ["commands", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scalefield")
def commands() -> None:
    """Exact mean-field theory and simulation of neural scaling laws."""


commands.add_command(curve)
commands.add_command(figure)
commands.add_command(kernel)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; errors are one line on standard error and exit code 2."""
    try:
        # Commands return an exit code, or None for success.
        code = commands.main(args=arguments, prog_name="scalefield", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        code = _report(error.format_message())
    except (ScalefieldError, ValueError, TypeError, MemoryError) as error:
        code = _report(str(error) or type(error).__name__)
    except OSError as error:
        code = _report(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("scalefield: interrupted", err=True)
        code = 130
    sys.exit(code or 0)


def _report(message: str) -> int:
    click.echo("scalefield: error: " + " ".join(message.split()), err=True)
    return 2
