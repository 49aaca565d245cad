"""`kes audit`: the audit log in the words of the releases until v0.6."""

from keswick.cli.command import Command, Group
from keswick.cli.connection import INSECURE
from keswick.cli.log import JSON, trace

COMMAND = Group(
    "Follow the audit log, as in 2020.",
    {
        "trace": Command(
            "",
            "Follow the audit log, as 'kes log trace' does.",
            trace,
            (JSON, INSECURE),
            examples=("kes audit trace",),
        )
    },
)
