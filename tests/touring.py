"""What the tour of the real clients is about: one question, one call of functions, one structured answer."""

from pydantic import BaseModel

from r1mac.engine.request import GenerateRequest
from r1mac.errors import PromptTooLong
from tests.http_server import Served

QUESTION = [{"role": "user", "content": "What is 2+2?"}]
THOUGHT, ANSWER = "Two and two.\n", "It is four."
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
FUNCTION = {"name": "weather", "description": "Tells the weather of a place.", "parameters": SCHEMA}
OPENAI_TOOL = {"type": "function", "function": FUNCTION}
ANTHROPIC_TOOL = {"name": "weather", "description": FUNCTION["description"], "input_schema": SCHEMA}
ASKS_WEATHER = [{"role": "user", "content": "How warm is it in Oslo and in Rome?"}]
CALLS = (
    "I have to look.\n</think>\n\nLet me look.<｜tool▁calls▁begin｜>"
    + "\n".join(
        f'<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{{"place": "{place}"}}\n```<｜tool▁call▁end｜>'
        for place in ("Oslo", "Rome")
    )
    + "<｜tool▁calls▁end｜>"
)


class Place(BaseModel):
    """What a structured answer is."""

    place: str
    degrees: int


PLACE = Place(place="Oslo", degrees=3)
KEY = "sesame"


def said(request: GenerateRequest) -> str | Exception:
    """What the reciter says: a call where functions are offered, JSON where that is asked for, else the sum."""
    if "too long" in (request.messages[-1].text if request.messages else ""):
        return PromptTooLong("the conversation has 9,000 tokens and memory is planned for 4,096", hint="shorten it")
    if request.messages and request.messages[-1].role == "tool":
        results = [message.text for message in request.messages if message.role == "tool"]
        return f"So.\n</think>\n\nOslo {results[0]}, Rome {results[1]}."
    if request.tools:
        return CALLS
    thought = f"{THOUGHT}</think>\n\n" if request.think and request.raw_prompt is None else ""
    return thought + (PLACE.model_dump_json() if request.answer_format else ANSWER)


def url_of(server: Served) -> str:
    """Return where a server is."""
    return f"http://127.0.0.1:{server.port}"
