"""Rows that are malformed, strange but valid, or must never count."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from babylon_tasks.simulation.records import Malformed, NeverCounts, Odd, TrajectoryRow
from babylon_tasks.simulation.values import Json, dump

_TEXTS: dict[Odd, str] = {
    "unicode": "Zürich \N{ROCKET} naïve 東京 \u202eabc",
    "lone_surrogate": "cut in the middle \ud83d",
    "nul_escape": "before\x00after",
}


def make_odd(steps: list[Json], odd: Sequence[Odd]) -> None:
    """Put the oddities into the steps; those of the row or of the window are made elsewhere."""
    for what in odd:
        _make_calls_odd(steps, what)
        if what == "string_numbers":
            for step in steps:
                state = step["environmentState"]
                step["environmentState"] = {key: str(value) for key, value in state.items()}
        elif what == "missing_state":
            steps[0]["environmentState"] = {}
            steps[1]["environmentState"].pop("agentPnL", None)
        elif what == "many_calls":
            steps[0]["llmCalls"] *= 3
        elif what == "no_calls":
            steps[1]["llmCalls"] = []
        elif what in _TEXTS:
            steps[0]["llmCalls"][0]["userPrompt"] += f"\nNews: {_TEXTS[what]}"
            steps[0]["providerAccesses"][0]["data"]["headline"] = _TEXTS[what]
        elif what == "odd_step":
            steps[1] |= {"environmentState": ["rich"], "action": "HOLD"}


def _make_calls_odd(steps: list[Json], what: Odd) -> None:
    """Write the calls as apps do that record what they send to a server of OpenAI's API."""
    for call in {id(call): call for step in steps for call in step["llmCalls"]}.values():
        if what == "messages" and "userPrompt" in call:
            system = {"role": "system", "content": call.pop("systemPrompt")}
            call["messages"] = [system, {"role": "user", "content": call.pop("userPrompt")}]
        if what == "prompt" and "userPrompt" in call:
            call["prompt"] = call.pop("userPrompt")
    if what == "image":
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        asked = [{"role": "user", "content": [picture]}]
        steps[0]["llmCalls"].append({"messages": asked, "response": "A chart that rises."})


def malformed(row: TrajectoryRow, what: Malformed) -> TrajectoryRow:
    """Return the row with a malformed `stepsJson`."""
    steps = json.loads(row.steps_json)
    if what == "pnl_is_text":
        steps[-1]["environmentState"]["agentPnL"] = "abc"
    texts: dict[Malformed, str] = {
        "truncated": row.steps_json[: len(row.steps_json) * 2 // 3],
        "null": "null",
        "empty": "[]",
        "not_a_list": dump({"steps": steps}),
    }
    return dataclasses.replace(row, steps_json=texts.get(what, dump(steps)))


def never_counting(row: TrajectoryRow, what: NeverCounts) -> TrajectoryRow:
    """Return the row with a mark because of which it is none of its window's, and never trains."""
    if what == "benchmark":
        return dataclasses.replace(row, scenario_id=f"benchmark-{row.scenario_id}")
    if what == "evaluation":
        return dataclasses.replace(row, is_evaluation=True)
    return dataclasses.replace(row, is_training_data=False)
