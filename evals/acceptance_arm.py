"""Arms: who drafts, in each of the runs that are compared."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from specdec.speculative import SpeculativeParams, Verification


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way to answer the same requests."""

    name: str
    params: SpeculativeParams
    is_predicted: bool = False
    """Whether requests bring the prediction that their task has."""


PLAIN = Arm(name="plain", params=SpeculativeParams(enabled=False))
CONTROL = Arm(name="plain, again", params=PLAIN.params)
"""What it seems to gain over PLAIN is what the machine's noise makes of nothing."""


def arms_of(
    methods: Sequence[str],
    lengths: Sequence[int | None],
    *,
    masks: Sequence[bool] = (True,),
    verification: Verification = Verification.COUPLED,
    is_predicted: bool = False,
    has_control: bool = False,
) -> list[Arm]:
    """The plain arm, the control, then every method with every length; None is a length chosen draft by draft.

    Raises RequestError for a method that is none.
    """
    arms = [PLAIN, CONTROL] if has_control else [PLAIN]
    for method in methods:
        for length in lengths:
            for masked in masks:
                parts = [method, *([] if length is None else [f"K={length}"]), *([] if masked else ["unmasked"])]
                arms.append(
                    Arm(
                        name=", ".join(parts),
                        params=SpeculativeParams(
                            enabled=True,
                            method=method,
                            num_speculative_tokens=length,
                            verification=verification,
                            mask_drafts=masked,
                        ),
                        is_predicted=is_predicted,
                    )
                )
    return arms
