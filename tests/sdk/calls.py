"""What the scripts beside this one share: they print what an SDK reported, one JSON object a line.

The SDKs are used as their documentation shows, with nothing changed but the base URL. Each call
carries its name in the header that FEATURE names, as an application would label its traffic.
"""

import json
import os
import sys

import anthropic
import openai

PROXY = os.environ["PROXY"]
FEATURE = os.environ["FEATURE"]


def label(name, **more):
    """The headers of a call."""
    return {"extra_headers": {FEATURE: name, **more}}


def show(name, **facts):
    # In one write, because calls may be made side by side.
    sys.stdout.write(json.dumps({"call": name, **facts}) + "\n")
    sys.stdout.flush()


def failure(error):
    """An error as the application meets it."""
    return {
        "error": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None) or getattr(error, "type", None),
    }


def attempt(name, run):
    """Runs a call and prints what came of it."""
    try:
        facts = run()
    except Exception as error:  # Whatever the SDK raises is what is reported.
        facts = failure(error)
    show(name, **facts)


def plain(usage):
    """A usage object as the SDK holds it, fields that it does not know included."""
    return usage and usage.model_dump(mode="json", exclude_none=True)


def whole(answer):
    """An answer in one piece: chat, message, response, embeddings or text."""
    return {
        "id": getattr(answer, "id", None),
        "model": getattr(answer, "model", None),
        "usage": plain(answer.usage),
        "request_id": answer._request_id,
    }


class ChatChunks:
    """Adds up a stream of chat chunks as the SDK gives them out."""

    def __init__(self):
        self.facts = {"id": None, "model": None, "usage": None, "without_choices": 0, "text": ""}

    def take(self, chunk):
        self.facts["id"] = chunk.id or self.facts["id"]
        self.facts["model"] = chunk.model or self.facts["model"]
        if chunk.usage:
            self.facts["usage"] = plain(chunk.usage)
        if chunk.choices:
            choice = chunk.choices[0]
            delta = getattr(choice, "delta", None)
            self.facts["text"] += (delta.content if delta else choice.text) or ""
        else:
            self.facts["without_choices"] += 1


class MessageEvents:
    """Adds up the events of a message, where a later usage replaces the fields that it has."""

    def __init__(self):
        self.facts = {"id": None, "model": None, "usage": None, "text": ""}

    def take(self, event):
        if event.type == "message_start":
            self.facts["id"] = event.message.id
            self.facts["model"] = event.message.model
            self.facts["usage"] = plain(event.message.usage)
        elif event.type == "message_delta":
            self.facts["usage"].update(plain(event.usage))
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            self.facts["text"] += event.delta.text


class ResponseEvents:
    """Takes what the last event of a response says."""

    def __init__(self):
        self.facts = {"id": None, "model": None, "usage": None, "last": None}

    def take(self, event):
        self.facts["last"] = event.type
        response = getattr(event, "response", None)
        if response:
            self.facts["id"] = response.id
            self.facts["model"] = response.model
            self.facts["usage"] = plain(response.usage)


def streamed(stream, sums, events_max=None):
    """Reads a stream to its end, or closes it after `events_max` events."""
    request_id = stream.response.headers.get("x-request-id")
    request_id = request_id or stream.response.headers.get("request-id")
    count = 0
    for event in stream:
        sums.take(event)
        count += 1
        if count == events_max:
            stream.close()
            break
    return {**sums.facts, "events": count, "request_id": request_id}


async def streamed_async(stream, sums, events_max=None):
    request_id = stream.response.headers.get("x-request-id")
    request_id = request_id or stream.response.headers.get("request-id")
    count = 0
    async for event in stream:
        sums.take(event)
        count += 1
        if count == events_max:
            await stream.close()
            break
    return {**sums.facts, "events": count, "request_id": request_id}


def versions():
    show("versions", openai=openai.__version__, anthropic=anthropic.__version__)
