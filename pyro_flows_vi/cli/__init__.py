"""The command line: ``pyro-flows-vi demo``, ``posterior``, and ``vae`` and ``density`` with their commands.

One file per group of commands; a new group is one file and one line here.
"""

from __future__ import annotations

import click

from pyro_flows_vi import __version__
from pyro_flows_vi.cli import demo, density, posterior, vae

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pyro-flows-vi")
def main() -> None:
    """Normalizing flows for variational inference in Pyro."""


main.add_command(demo.demo)
main.add_command(density.density)
main.add_command(posterior.posterior)
main.add_command(vae.vae)
