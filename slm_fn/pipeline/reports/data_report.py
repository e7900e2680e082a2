"""The report of an inspection of data: figures, samples, length histograms and plots.

Invariant: figures and samples are plain JSON values.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from slm_fn.pipeline.reports.histogram import LengthHistogram
from slm_fn.pipeline.reports.text_plots import Panel

DataKind = Literal[
    "pack",
    "prepared",
    "text",
    "chat",
    "pairs",
]
JsonObject = dict[str, Any]
MAX_SAMPLE_CHARACTERS = 500


class DataReport(NamedTuple):
    """What an inspection of data computed.

    Attributes:
        kind: what the data is.
        figures: counts and other single values, by name.
        samples: the first documents, windows or conversations.
        lengths: distributions of lengths, by the name of what has them.
        panels: plots of the data.
    """

    kind: DataKind
    figures: JsonObject
    samples: list[JsonObject]
    lengths: dict[str, LengthHistogram]
    panels: list[Panel]
