"""fal's client, which speaks only https, and Replicate's, as their documentation shows.

FAL_RUN_HOST, FAL_QUEUE_RUN_HOST and REPLICATE_BASE_URL point at the proxy; SSL_CERT_FILE names what
its https is trusted by.
"""

import asyncio
from importlib.metadata import version

import fal_client
import replicate

from calls import attempt, show

FLUX = "fal-ai/flux/dev"
LLAMA = "meta/meta-llama-3-8b-instruct"
SCHNELL = "black-forest-labs/flux-schnell"
PROMPT = {"prompt": "a cat, Xyzzyprompt"}


def images(answer):
    return {"images": [image["url"] for image in answer["images"]]}


def submitted(handle):
    return {**images(handle.get()), "request_id": handle.request_id}


def subscribed():
    seen = []
    answer = fal_client.subscribe(
        FLUX,
        PROMPT,
        with_logs=True,
        on_queue_update=lambda update: seen.append(type(update).__name__),
    )
    return {**images(answer), "updates": sorted(set(seen))}


async def run_async():
    return images(await fal_client.AsyncClient().run(FLUX, PROMPT))


async def submitted_async():
    handle = await fal_client.AsyncClient().submit(FLUX, PROMPT)
    return {**images(await handle.get()), "request_id": handle.request_id}


def refused():
    try:
        fal_client.run("fal-ai/locked", PROMPT)
    except fal_client.FalClientHTTPError as error:
        return {"status": error.status_code, "message": error.message}


show("versions", fal=version("fal-client"), replicate=version("replicate"))
attempt("fal-run", lambda: images(fal_client.run(FLUX, PROMPT)))
attempt("fal-run-async", lambda: asyncio.run(run_async()))
attempt("fal-submit", lambda: submitted(fal_client.submit(FLUX, PROMPT)))
attempt("fal-submit-async", lambda: asyncio.run(submitted_async()))
attempt("fal-subscribe", subscribed)
attempt("fal-refused", refused)
attempt("replicate-run", lambda: {"output": "".join(replicate.run(LLAMA, PROMPT))})
attempt(
    "replicate-run-polled",
    lambda: {"output": [str(file) for file in replicate.run(SCHNELL, PROMPT, wait=False)]},
)
