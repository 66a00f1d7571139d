"""How a request is to be speculated on, on the wire: `speculative`, OpenAI's `prediction`, `specdec_trace`."""

from __future__ import annotations

from typing import Any

import msgspec

from specdec import SpeculativeParams
from specdec.server.sampling import SamplingFields


class PredictionPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of a prediction."""

    text: str


class Prediction(msgspec.Struct, frozen=True, tag_field="type", tag="content"):
    """OpenAI's Predicted Outputs: text that the answer is expected to resemble."""

    content: str | list[PredictionPart]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class SpeculationFields(SamplingFields, frozen=True, kw_only=True):
    """None of them changes an answer, but for `verification`, which keeps its law; `prediction` is OpenAI's."""

    speculative: SpeculativeParams | None = None
    prediction: Prediction | None = None
    specdec_trace: bool | None = None
    """Adds what every target pass verified to the answer's extension."""

    # Any: the types are those of the engine's Request.
    def request_fields(self) -> dict[str, Any]:
        """As the engine's Request has them."""
        return {
            "speculative": self.speculative,
            "prediction": "" if self.prediction is None else self.prediction.text,
            "trace": bool(self.specdec_trace),
        }
