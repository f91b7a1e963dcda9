// fal's client, which tells a proxy in a header where a request goes, and Replicate's, as their
// documentation shows.

"use strict";

const { createFalClient } = require("@fal-ai/client");
const Replicate = require("replicate");

const { attempt, versions } = require("./calls.cjs");

const FLUX = "fal-ai/flux/dev";
const LLAMA = "meta/meta-llama-3-8b-instruct";
const SCHNELL = "black-forest-labs/flux-schnell";
const INPUT = { prompt: "a cat, Xyzzyprompt" };
const STREAMED = "streamedhgbfurvjtvhg6dckhu";

const proxy = process.env.PROXY;
const fal = createFalClient({ proxyUrl: { url: `${proxy}/fal-proxy`, when: "always" } });
const replicate = new Replicate({ baseUrl: `${proxy}/replicate/v1` });

const images = (answer) => ({
  images: answer.data.images.map((image) => image.url),
  request_id: answer.requestId,
});

async function submitted() {
  const { request_id: requestId } = await fal.queue.submit(FLUX, { input: INPUT });
  let status;
  do {
    status = await fal.queue.status(FLUX, { requestId });
  } while (status.status !== "COMPLETED");
  return images(await fal.queue.result(FLUX, { requestId }));
}

async function subscribed() {
  const seen = new Set();
  const answer = await fal.subscribe(FLUX, {
    input: INPUT,
    pollInterval: 10,
    onQueueUpdate: (update) => seen.add(update.status),
  });
  return { ...images(answer), updates: [...seen].sort() };
}

async function polled() {
  const wait = { mode: "poll", interval: 10 };
  const output = await replicate.run(SCHNELL, { input: INPUT, wait });
  return { output: output.map((file) => file.url().href) };
}

async function streamed() {
  let output = "";
  for await (const event of replicate.stream(LLAMA, { input: INPUT })) {
    output += event.event === "output" ? event.data : "";
  }
  // What it consumed is told by the prediction alone.
  const { metrics } = await replicate.predictions.get(STREAMED);
  return { output, tokens: metrics.output_token_count };
}

async function main() {
  versions("@fal-ai/client", "replicate");
  await attempt("fal-run", async () => images(await fal.run(FLUX, { input: INPUT })));
  await attempt("fal-submit", submitted);
  await attempt("fal-subscribe", subscribed);
  await attempt("fal-refused", () => fal.run("fal-ai/locked", { input: INPUT }));
  await attempt("replicate-run", async () => ({
    output: (await replicate.run(LLAMA, { input: INPUT })).join(""),
  }));
  await attempt("replicate-run-polled", polled);
  await attempt("replicate-stream", streamed);
}

main();
