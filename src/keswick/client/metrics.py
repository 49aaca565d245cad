"""What a scrape of a server's metrics says: Prometheus's text format 0.0.4."""

import re
from collections.abc import Iterator

Labels = tuple[tuple[str, str], ...]

_SAMPLE = re.compile(
    r"(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)"
    r'(?:\{(?P<labels>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?'
    r"[ \t]+(?P<value>\S+)(?:[ \t]+-?\d+)?[ \t]*"
)
_LABEL = re.compile(r'\b([A-Za-z_][A-Za-z0-9_]*+)[ \t]*+=[ \t]*"((?:[^"\\]|\\.)*+)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


class Metrics:
    """The samples of one scrape. Raises ValueError when the text is no such scrape.

    >>> metrics = client.metrics()
    >>> metrics.total("kes_http_request_success") >= 1
    True
    >>> metrics.samples("kes_keystore_offline")
    {(): 0.0}
    """

    def __init__(self, text: str) -> None:
        self.text = text
        """As it was scraped."""
        self._samples: dict[str, dict[Labels, float]] = {}
        for name, labels, value in _parsed(text):
            self._samples.setdefault(name, {})[labels] = value

    def samples(self, name: str) -> dict[Labels, float]:
        """The values under that name, by their labels: `{(("code", "200"),): 17.0}`. Empty if there are none."""
        return dict(self._samples.get(name, {}))

    def total(self, name: str) -> float:
        """The sum of all values under that name; 0.0 if there are none."""
        return sum(self._samples.get(name, {}).values(), 0.0)

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """A histogram, whatever its labels: upper bounds, the last of them infinite, and how many values are not above
        each."""
        counts: dict[float, float] = {}
        for labels, value in self._samples.get(f"{name}_bucket", {}).items():
            bound = float(dict(labels).get("le", "inf"))
            counts[bound] = counts.get(bound, 0.0) + value
        return sorted(counts.items())

    def __repr__(self) -> str:
        return f"<Metrics: {len(self._samples)} names>"


def _parsed(text: str) -> Iterator[tuple[str, Labels, float]]:
    for line in map(str.strip, text.split("\n")):
        if not line or line.startswith("#"):
            continue
        try:
            match = _SAMPLE.fullmatch(line)
            value = float(match["value"] if match else "")
        except ValueError:
            match = None
        if match is None:
            raise ValueError(f"{line[:80]!r} is no line of metrics")
        labels = tuple(
            (label, re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), content))
            for label, content in _LABEL.findall(match["labels"] or "")
        )
        yield match["name"], labels, value
