"""In whose words the server answers: a table of replies for each time, beside the handlers of today.

    2025  since October 2023; the default
    2023  the releases of 2022 to October 2023, as that of 2023-04-18 answered
    2022  v0.14 to v0.18, as v0.17.6 answered
    2021  before v0.14, as v0.13.4 answered

A dialect decides how an answer is worded, never what is done. Source: what servers of these releases were seen to send.
"""

from keswick.server.dialects import of_2021, of_2023
from keswick.server.dialects.dialect import Dialect

__all__ = ["DIALECTS", "Dialect"]

DIALECTS = {dialect.name: dialect for dialect in (Dialect("2025"), of_2023.DIALECT, of_2021.LATE, of_2021.DIALECT)}
