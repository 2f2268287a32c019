"""LangChain's ChatOpenAI as its documentation shows it: an answer, a chat, a stream, usage, an awaited call, a batch.

QWENQ_URL=http://127.0.0.1:8000 QWENQ_KEY=... python langchain_openai_chat.py responses|chat
"""

import asyncio
import os
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="default",
    base_url=f"{os.environ['QWENQ_URL']}/v1",
    api_key=os.environ["QWENQ_KEY"],
    use_responses_api=sys.argv[1] == "responses",
    temperature=0,
    max_tokens=60,
    max_retries=0,
)

answer = model.invoke([SystemMessage("You are brief."), HumanMessage("Hello, who are you?")])
print("invoke:", answer.text, answer.usage_metadata)
assert answer.text
assert answer.usage_metadata["output_tokens"] > 0

chat = [
    SystemMessage("You are Robo, a friendly robot."),
    HumanMessage("My dog's name is Max."),
    AIMessage("Max is a nice name for a dog!"),
    HumanMessage("What is my dog's name?"),
]
said = model.invoke(chat)
print("chat:", said.text)
assert "Max" in said.text
# The answer itself goes back as history, ids and all.
again = model.invoke([*chat, said, HumanMessage("Thank you.")])
print("history:", again.text)
assert again.text

pieces = [piece.text for piece in model.stream("Count to five.")]
print("stream:", len(pieces), "pieces:", "".join(pieces))
assert len(pieces) > 3

chain = (
    ChatPromptTemplate.from_messages([("system", "You answer in {language}."), ("user", "{text}")]) | model
)
parsed = (chain | StrOutputParser()).invoke({"language": "English", "text": "What is two plus two?"})
print("chain:", parsed)
assert parsed

print("awaited:", asyncio.run(model.ainvoke("Say yes.")).text)
both = model.batch(["Say one.", "Say two."])
print("batch:", [each.text for each in both])
assert len(both) == 2
print("all of it worked")
