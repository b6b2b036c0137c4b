"""A claim with the paper's number and ours, and the table that prints them."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Claim(NamedTuple):
    """One sentence that a run can confirm or not.

    Attributes:
      statement: what should be so.
      paper: what the paper states or shows.
      here: what this run measured.
      holds: whether our own statement held; None where nothing was promised (a number
        of the paper that these data cannot reach, say), which never fails a run.
      reason: why it is so, where that needs saying.
    """

    statement: str
    paper: str
    here: str
    holds: bool | None
    reason: str = ""


def all_hold(claims: Sequence[Claim]) -> bool:
    """Returns whether no claim of our own failed."""
    return all(claim.holds is not False for claim in claims)


def print_table(claims: Sequence[Claim]) -> None:
    """Prints "claim | paper | here" and which claims held."""
    verdicts = {True: "[green]holds[/]", False: "[red]FAILS[/]", None: "-"}
    table = Table(show_lines=True)
    table.add_column("claim", ratio=5)
    table.add_column("paper", ratio=3)
    table.add_column("here", ratio=4)
    table.add_column("", no_wrap=True)
    for claim in claims:
        here = f"{claim.here} ({claim.reason})" if claim.reason else claim.here
        texts = map(escape, (claim.statement, claim.paper, here))
        table.add_row(*texts, verdicts[claim.holds])
    Console().print(table)
