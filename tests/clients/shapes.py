"""What the clients ask for: small enough for a model that knows nothing, and wrong if a constraint is not held."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Forecast(BaseModel):
    """The weather of some days."""

    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=14)
    skies: list[Literal["clear", "clouds", "rain"]] = Field(min_length=1, max_length=3)
    wind: Literal["calm", "storm"] | None


QUESTION = "What will the weather be like in Oslo this week?"
