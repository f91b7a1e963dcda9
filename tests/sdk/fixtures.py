"""Every kind of call, answered with recorded bytes: each call is named after the fixture that
answers it.
"""

import base64
import io

from anthropic import Anthropic
from openai import AzureOpenAI, OpenAI

from calls import (
    PROXY,
    ChatChunks,
    MessageEvents,
    ResponseEvents,
    attempt,
    label,
    streamed,
    versions,
    whole,
)

ASK = [{"role": "user", "content": "Say hi. Xyzzyprompt"}]


def use_openai(client):
    def chat(name, **more):
        attempt(
            name,
            lambda: whole(
                client.chat.completions.create(
                    model="gpt-4o-mini", messages=ASK, **label(name), **more
                )
            ),
        )

    def chat_stream(name, **more):
        attempt(
            name,
            lambda: streamed(
                client.chat.completions.create(
                    model="gpt-4o-mini", messages=ASK, stream=True, **label(name), **more
                ),
                ChatChunks(),
            ),
        )

    usage = {"stream_options": {"include_usage": True}}
    chat("openai/chat-whole")
    chat("openai/chat-gzip")
    chat("openai/chat-cache-read-and-audio")
    chat("openai/chat-cache-write")
    chat("openai/chat-reasoning-flex")
    chat_stream("openai/chat-stream-usage-in-last-event", **usage)
    chat_stream("openai/chat-stream-crlf", **usage)
    chat_stream("openai/chat-stream-gzip", **usage)
    chat_stream("openai/chat-stream-tool-calls", **usage)
    chat_stream("openai/chat-stream-content-filter", **usage)
    chat_stream("openai/chat-error-in-stream", **usage)
    chat_stream("openai/chat-stream-truncated", **usage)
    for name in [
        "openai/error-400-context-length",
        "openai/error-401-invalid-key",
        "openai/error-404-model",
        "openai/error-429-insufficient-quota",
        "openai/error-429-rate-limit",
        "openai/error-502-html",
        "openai/error-503-empty",
    ]:
        chat(name)

    name = "openai/completion-stream"
    attempt(
        name,
        lambda: streamed(
            client.completions.create(
                model="gpt-3.5-turbo-instruct",
                prompt="Say hi.",
                stream=True,
                **usage,
                **label(name),
            ),
            ChatChunks(),
        ),
    )

    def responses(name, **more):
        attempt(
            name,
            lambda: whole(
                client.responses.create(model="gpt-5-mini", input="Hi.", **label(name), **more)
            ),
        )

    def responses_stream(name):
        attempt(
            name,
            lambda: streamed(
                client.responses.create(
                    model="gpt-5-mini", input="Hi.", stream=True, **label(name)
                ),
                ResponseEvents(),
            ),
        )

    responses("openai/responses-whole")
    responses("openai/responses-web-search", tools=[{"type": "web_search"}])
    responses("openai/responses-incomplete-length", max_output_tokens=64)
    responses_stream("openai/responses-stream")
    responses_stream("openai/responses-stream-web-search")
    responses_stream("openai/responses-error-in-stream")
    responses_stream("openai/responses-failed")

    def embed(name):
        return whole(
            client.embeddings.create(model="text-embedding-3-small", input="Hi.", **label(name))
        )

    attempt("openai/embeddings", lambda: embed("openai/embeddings"))

    def models(name):
        return {"ids": [model.id for model in client.models.list(**label(name))]}

    attempt("openai/models", lambda: models("openai/models"))

    def image(name):
        answer = client.images.generate(
            model="gpt-image-1", prompt="A log.", size="1024x1024", quality="high", **label(name)
        )
        return {"usage": answer.usage.model_dump(mode="json", exclude_none=True)}

    attempt("openai/image-tokens", lambda: image("openai/image-tokens"))

    def transcribe(name):
        sound = io.BytesIO(b"ID3" + bytes(range(256)) * 400)
        sound.name = "a.mp3"
        answer = client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=sound, **label(name)
        )
        return {"usage": answer.usage.model_dump(mode="json", exclude_none=True)}

    attempt("openai/transcription-tokens", lambda: transcribe("openai/transcription-tokens"))

    def speak(name):
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="Ahoi, Käpt’n! ⚓", **label(name)
        ) as answer:
            sound = b"".join(answer.iter_bytes())
        return {"body": base64.b64encode(sound).decode()}

    attempt("openai/speech-binary", lambda: speak("openai/speech-binary"))


def use_azure():
    # `azure_endpoint` is Azure's base URL.
    client = AzureOpenAI(
        azure_endpoint=f"{PROXY}/azure",
        api_version="2024-10-21",
        api_key="azure-secret-key",
        max_retries=0,
    )

    def chat(name, **more):
        return client.chat.completions.create(
            model="our-mini", messages=ASK, **label(name), **more
        )

    for name in ["azure/chat-whole", "azure/chat-gzip", "azure/error-401", "azure/error-429"]:
        attempt(name, lambda: whole(chat(name)))
    usage = {"stream_options": {"include_usage": True}}
    for name in ["azure/chat-stream-empty-first-event"]:
        attempt(name, lambda: streamed(chat(name, stream=True, **usage), ChatChunks()))
    # The answer is plain, and the option that was not asked for is taken out again.
    name = "azure/chat-stream-empty-first-event without usage"
    attempt(name, lambda: streamed(chat(name, stream=True), ChatChunks()))


def use_anthropic(client):
    arguments = {"model": "claude-sonnet-4-5", "max_tokens": 1024, "messages": ASK}
    for name in [
        "anthropic/message-whole-cache",
        "anthropic/message-cache-1h",
        "anthropic/message-web-search",
        "anthropic/message-iterations-advisor",
        "anthropic/message-gzip",
        "anthropic/error-401",
        "anthropic/error-400-credit-balance",
        "anthropic/error-413",
        "anthropic/error-429",
    ]:
        attempt(name, lambda: whole(client.messages.create(**arguments, **label(name))))
    for name in [
        "anthropic/message-stream",
        "anthropic/message-stream-cache-split-kept",
        "anthropic/message-stream-cache-grows-1h",
        "anthropic/message-stream-output-only",
        "anthropic/message-stream-thinking-us-fast",
        "anthropic/message-stream-tool-use",
        "anthropic/message-stream-refusal",
        "anthropic/message-error-in-stream",
        "anthropic/message-stream-truncated",
    ]:
        attempt(
            name,
            lambda: streamed(
                client.messages.create(**arguments, stream=True, **label(name)), MessageEvents()
            ),
        )
    # The SDK tries twice more.
    name = "anthropic/error-529-overloaded"
    attempt(
        name,
        lambda: whole(
            client.with_options(max_retries=2).messages.create(**arguments, **label(name))
        ),
    )

    def count(name):
        del arguments["max_tokens"]
        return {"usage": client.messages.count_tokens(**arguments, **label(name)).model_dump()}

    attempt("anthropic/count-tokens", lambda: count("anthropic/count-tokens"))


def use_openrouter():
    client = OpenAI(
        base_url=f"{PROXY}/openrouter/api/v1", api_key="sk-or-secret-key", max_retries=0
    )

    def chat(name, **more):
        return client.chat.completions.create(
            model="openai/gpt-4o-mini", messages=ASK, **label(name), **more
        )

    for name in [
        "openrouter/chat-whole",
        "openrouter/chat-byok",
        "openrouter/chat-whitespace-before-json",
        "openrouter/chat-cost-in-exponent-form",
        "openrouter/error-402-credits",
        "openrouter/error-429-upstream",
    ]:
        attempt(name, lambda: whole(chat(name)))
    for name in [
        "openrouter/chat-stream-keep-alive-and-usage",
        "openrouter/chat-stream-usage-without-choices",
        "openrouter/chat-error-in-stream-with-usage",
    ]:
        attempt(name, lambda: streamed(chat(name, stream=True), ChatChunks()))

    # OpenRouter speaks Anthropic's API too.
    skin = Anthropic(
        base_url=f"{PROXY}/openrouter/api", auth_token="sk-or-secret-key", max_retries=0
    )
    arguments = {"model": "anthropic/claude-sonnet-4.5", "max_tokens": 100, "messages": ASK}
    name = "openrouter/messages-whole"
    attempt(name, lambda: whole(skin.messages.create(**arguments, **label(name))))
    name = "openrouter/messages-stream"
    attempt(
        name,
        lambda: streamed(
            skin.messages.create(**arguments, stream=True, **label(name)), MessageEvents()
        ),
    )


def retry(client):
    """Refused once, answered when the SDK asks again."""
    name = "openai/error-429-rate-limit then openai/chat-whole"
    attempt(
        name,
        lambda: whole(
            client.with_options(max_retries=2).chat.completions.create(
                model="gpt-4o-mini", messages=ASK, **label(name)
            )
        ),
    )


def main():
    versions()
    openai = OpenAI(max_retries=0)
    use_openai(openai)
    use_azure()
    use_anthropic(Anthropic(max_retries=0))
    use_openrouter()
    retry(openai)


main()
