"""Functions in a prompt, in the words that Qwen learned to call them by (ReAct, of Qwen's own openai_api.py).

The functions stand before the newest user message. A call and what it returned stand in the assistant's message, and
the answer goes on in that message while nothing else was said:

    <|im_start|>user⏎INSTRUCTION⏎⏎Question: TEXT<|im_end|>
    ⏎<|im_start|>assistant⏎Thought: ...⏎Action: NAME⏎Action Input: ARGUMENTS⏎Observation: OUTPUT⏎

Everything here is text, and becomes the tokens of text: what a caller or a function says is never a control token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from storage.models import Json
from worker.model.chat import Message

INSTRUCTION = """\
Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
TOOL = (
    "{name}: Call this tool to interact with the {name} API. What is the {name} API useful for? {description} "
    "Parameters: {parameters} Format the arguments as a JSON object."
)
KNOWS = "Thought: I now know the final answer\nFinal Answer: "


def instructed(messages: Sequence[Message], tools: Sequence[Json]) -> list[Message]:
    """Put the description of the functions before the newest user message."""
    found = list(messages)
    instruction = INSTRUCTION.format(
        tools="\n\n".join(_described(tool) for tool in tools), names=",".join(tool["name"] for tool in tools)
    )
    for place in reversed(range(len(found))):
        if found[place].role == "user":
            text = f"{instruction}\n\nQuestion: {found[place].text}"
            found[place] = replace(found[place], text=text)
            return found
    return [*found, Message("user", instruction)]


def call(item: Json) -> str:
    """Return a call as the assistant would have said it."""
    name = item["name"]
    return f"Thought: I can use {name}.\nAction: {name}\nAction Input: {item['arguments']}\n"


def observation(output: Json) -> str:
    """Return what a function returned as it stands behind its call."""
    return f"Observation: {output['output']}\n"


def answer(text: str) -> str:
    """Return an answer as it stands behind calls."""
    return KNOWS + text


def _described(tool: Json) -> str:
    return TOOL.format(
        name=tool["name"],
        description=tool["description"] or "",
        parameters=json.dumps(tool["parameters"] or {}, ensure_ascii=False),
    )
