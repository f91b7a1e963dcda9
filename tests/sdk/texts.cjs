// The calls of ordinary applications by OpenAI's and Anthropic's SDKs, whole and streamed.
//
// OPENAI_BASE_URL and ANTHROPIC_BASE_URL point at the proxy. Each call carries its name in the
// header that FEATURE names, as an application would label its traffic.

"use strict";

const OpenAI = require("openai");
const Anthropic = require("@anthropic-ai/sdk");

const { attempt, versions } = require("./calls.cjs");

const messages = [{ role: "user", content: "Where is the log streamed? Xyzzyprompt" }];
const openai = new OpenAI();
const anthropic = new Anthropic();

const label = (call) => ({ headers: { [process.env.FEATURE]: call } });

function make(call, request) {
  return attempt(call, async () => {
    const { data, request_id } = await request(label(call)).withResponse();
    return { id: data.id, model: data.model, usage: data.usage, request_id };
  });
}

/** A stream of chat chunks or of a message's events, where a later usage replaces what it has. */
function stream(call, request) {
  return attempt(call, async () => {
    const { data, request_id } = await request(label(call)).withResponse();
    const facts = { model: null, usage: null, events: 0, without_choices: 0, request_id };
    for await (const event of data) {
      facts.events += 1;
      facts.model = event.model ?? event.message?.model ?? facts.model;
      const usage = event.usage ?? event.message?.usage;
      facts.usage = usage ? { ...facts.usage, ...usage } : facts.usage;
      facts.without_choices += event.choices?.length === 0 ? 1 : 0;
    }
    return facts;
  });
}

async function main() {
  versions("openai", "@anthropic-ai/sdk");
  const chat = { model: "gpt-6-luna", messages };
  const usage = { stream_options: { include_usage: true } };
  const message = { model: "claude-opus-5-5", messages, max_tokens: 200 };
  await make("chat", (options) => openai.chat.completions.create(chat, options));
  await stream("chat-stream", (options) =>
    openai.chat.completions.create({ ...chat, stream: true }, options),
  );
  await stream("chat-stream-usage", (options) =>
    openai.chat.completions.create({ ...chat, stream: true, ...usage }, options),
  );
  await make("responses", (options) =>
    openai.responses.create({ model: chat.model, input: messages[0].content }, options),
  );
  await make("messages", (options) => anthropic.messages.create(message, options));
  await stream("messages-stream", (options) =>
    anthropic.messages.create({ ...message, stream: true }, options),
  );
}

main();
