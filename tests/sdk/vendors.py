"""The calls of ordinary applications, sync and async, well served and badly.

OPENAI_BASE_URL and ANTHROPIC_BASE_URL point at the proxy; OpenRouter is reached with OpenAI's SDK.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI

import calls
from calls import (
    PROXY,
    ChatChunks,
    MessageEvents,
    ResponseEvents,
    failure,
    label,
    show,
    streamed,
    streamed_async,
    versions,
    whole,
)

PROMPT = "Where is the log streamed? Xyzzyprompt"
LONG = "taffrail " * 2000
# More than the proxy holds in memory.
LARGE = "taffrail " * 20000
STREAMS = 20

POOL = ThreadPoolExecutor(8)


def attempt(name, run):
    """Makes the call beside others, since the vendors take their time."""
    POOL.submit(calls.attempt, name, run)


def ask(prompt=PROMPT):
    return [{"role": "user", "content": prompt}]


def chat(client, name, model, prompt=PROMPT, **more):
    attempt(
        name,
        lambda: whole(
            client.chat.completions.create(
                model=model, messages=ask(prompt), **label(name), **more
            )
        ),
    )


def chat_stream(client, name, model, prompt=PROMPT, events_max=None, headers={}, **more):
    attempt(
        name,
        lambda: streamed(
            client.chat.completions.create(
                model=model, messages=ask(prompt), stream=True, **label(name, **headers), **more
            ),
            ChatChunks(),
            events_max,
        ),
    )


def use_openai(client):
    usage = {"stream_options": {"include_usage": True}}
    chat(client, "chat", "gpt-4o-mini")
    chat(client, "chat-cached", "gpt-6-luna", LONG)
    chat_stream(client, "chat-stream", "gpt-4o-mini")
    chat_stream(client, "chat-stream-usage", "gpt-4o-mini", **usage)
    refused = {"stream_options": {"include_usage": False}}
    chat_stream(client, "chat-stream-refused", "gpt-4o-mini", **refused)
    chat_stream(client, "chat-stream-large", "gpt-6-luna", LARGE)
    chat_stream(client, "chat-stream-large-usage", "gpt-6-luna", LARGE, **usage)
    chat(client, "chat-large", "gpt-6-luna", LARGE)
    chat_stream(client, "chat-closed", "gpt-4o-mini", events_max=4, headers={"x-demo-case": "slow"})

    model = "gpt-6.1-sol"
    attempt(
        "responses",
        lambda: whole(client.responses.create(model=model, input=LONG, **label("responses"))),
    )
    attempt(
        "responses-stream",
        lambda: streamed(
            client.responses.create(
                model=model, input=LONG, stream=True, **label("responses-stream")
            ),
            ResponseEvents(),
        ),
    )
    attempt(
        "embeddings",
        lambda: whole(
            client.embeddings.create(
                model="text-embedding-3-small", input=[PROMPT, "astern"], **label("embeddings")
            )
        ),
    )


def use_anthropic(client):
    arguments = {
        "model": "claude-opus-5-5",
        "max_tokens": 400,
        "system": [
            {
                "type": "text",
                "text": LONG,
                "cache_control": {"type": "ephemeral", "ttl": "1h"},
            }
        ],
        "messages": ask(),
    }
    attempt("messages", lambda: whole(client.messages.create(**arguments, **label("messages"))))
    attempt(
        "messages-stream",
        lambda: streamed(
            client.messages.create(**arguments, stream=True, **label("messages-stream")),
            MessageEvents(),
        ),
    )

    def helper():
        name = "messages-helper"
        with client.messages.stream(**arguments, **label(name)) as stream:
            text = "".join(stream.text_stream)
            return {**whole_of(stream.get_final_message(), stream), "text": text}

    def whole_of(message, stream):
        facts = {"id": message.id, "model": message.model}
        usage = message.usage.model_dump(mode="json", exclude_none=True)
        return {**facts, "usage": usage, "request_id": stream.request_id}

    attempt("messages-helper", helper)
    attempt(
        "messages-closed",
        lambda: streamed(
            client.messages.create(
                **arguments, stream=True, **label("messages-closed", **{"x-demo-case": "slow"})
            ),
            MessageEvents(),
            events_max=5,
        ),
    )


def use_openrouter(client):
    # The second one is paid with a key of the customer's own.
    for name, model in [
        ("router", "meta-llama/llama-3.3-70b-instruct"),
        ("router-byok", "google/gemini-2.5-flash"),
    ]:
        chat(client, name, model)
        chat_stream(client, name + "-stream", model)


CASES = ["rate-limited", "quota-exhausted", "overloaded", "error-in-stream", "truncated"]


def fail(openai, anthropic, openrouter):
    """Every client meets every trouble; the first one is tried again by the SDK."""
    for name, client, model in [
        ("openai", openai.with_options(max_retries=1), "gpt-4o-mini"),
        ("openrouter", openrouter.with_options(max_retries=0), "google/gemini-2.5-flash"),
    ]:
        for case in CASES:
            if case == "quota-exhausted":
                client = client.with_options(max_retries=0)
            chat_stream(client, f"{name}-{case}", model, headers={"x-demo-case": case})
    for case in CASES:
        fail_message(anthropic.with_options(max_retries=0), case)


def fail_message(client, case):
    name = f"anthropic-{case}"
    attempt(
        name,
        lambda: streamed(
            client.messages.create(
                model="claude-haiku-5-5",
                max_tokens=300,
                messages=ask(),
                stream=True,
                **label(name, **{"x-demo-case": case}),
            ),
            MessageEvents(),
        ),
    )


async def at_once():
    """Streams side by side, each with a question and an answer of its own."""
    async with AsyncOpenAI() as openai, AsyncAnthropic() as anthropic:

        async def one_chat(index):
            name = f"async-chat-{index}"
            prompt = f"{PROMPT} {'and again ' * index}"
            stream = await openai.chat.completions.create(
                model="gpt-6-luna", messages=ask(prompt), stream=True, **label(name)
            )
            return name, await streamed_async(stream, ChatChunks())

        async def one_message(index):
            name = f"async-message-{index}"
            prompt = f"{PROMPT} {'and again ' * index}"
            stream = await anthropic.messages.create(
                model="claude-haiku-5-5",
                max_tokens=300,
                messages=ask(prompt),
                stream=True,
                **label(name),
            )
            return name, await streamed_async(stream, MessageEvents())

        chats = [one_chat(index) for index in range(STREAMS)]
        messages = [one_message(index) for index in range(STREAMS)]
        for name, facts in await asyncio.gather(*chats, *messages):
            show(name, **facts)

        # Leaving by cancelling the task, as a web server does when its own client goes.
        name = "async-closed"

        async def endless():
            stream = await openai.chat.completions.create(
                model="gpt-4o-mini",
                messages=ask(),
                stream=True,
                **label(name, **{"x-demo-case": "slow"}),
            )
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(endless())
        await begun.wait()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            show(name, **failure(error))


def main():
    versions()
    openai, anthropic = OpenAI(), Anthropic()
    openrouter = OpenAI(base_url=f"{PROXY}/openrouter/api/v1", api_key="sk-or-secret-key")
    use_openai(openai)
    use_anthropic(anthropic)
    use_openrouter(openrouter)
    fail(openai, anthropic, openrouter)
    POOL.shutdown()
    asyncio.run(at_once())


main()
