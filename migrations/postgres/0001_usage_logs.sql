-- Everything lives in the schema `taffrail`, and every name below is qualified, so that the
-- search path of whoever migrates does not matter.

-- One row per request or job, as settled by the sidecar. Partitioned by day, so that a day is
-- retired by dropping a table. The primary key holds the partition column, as Citus and
-- Timescale ask as well; the id comes first, so that a row is found by its id alone.
create table taffrail.api_usage_logs (
    id                     uuid        not null,
    day                    date        not null,
    started_at             timestamptz not null,
    instance               text        not null,
    namespace              text,
    pod                    text,
    provider               text        not null,
    operation              text        not null,
    method                 text        not null,
    route                  text        not null,
    model_requested        text,
    model_served           text,
    upstream_provider      text,
    service_tier           text,
    streamed               boolean     not null,
    job_id                 text,
    polls                  bigint,
    provider_request_id    text,
    outcome                text        not null,
    http_status            smallint,
    error_code             text,
    error_message          text,
    finish_reason          text,
    duration_us            bigint,
    first_byte_us          bigint,
    first_token_us         bigint,
    overhead_us            bigint,
    queue_us               bigint,
    run_us                 bigint,
    request_bytes          bigint,
    response_bytes         bigint,
    input_tokens           bigint,
    cache_read_tokens      bigint,
    cache_write_5m_tokens  bigint,
    cache_write_1h_tokens  bigint,
    cache_write_tokens     bigint,
    output_tokens          bigint,
    reasoning_tokens       bigint,
    input_audio_tokens     bigint,
    output_audio_tokens    bigint,
    input_image_tokens     bigint,
    output_image_tokens    bigint,
    units                  jsonb,
    fidelity               text        not null,
    raw_usage              json,
    cost_usd               numeric,
    cost_upstream_usd      numeric,
    cost_source            text,
    price_version          text,
    unpriced_reason        text,
    recosted_at            timestamptz,
    key_fingerprint        text,
    attribution            jsonb       not null default '{}',
    trace_id               text,
    span_id                text,
    primary key (id, day)
) partition by range (day);

-- `taffrail logs` pages through it backwards, `taffrail usage` reads a window of it forwards.
create index api_usage_logs_started_at on taffrail.api_usage_logs (started_at desc, id desc);
-- Those pages by provider, which may have few rows among many, and by outcome. What went well is
-- found without an index of its own, and costs none.
create index api_usage_logs_provider on taffrail.api_usage_logs (provider, started_at desc, id desc);
create index api_usage_logs_outcome on taffrail.api_usage_logs (outcome, started_at desc, id desc)
    where outcome <> 'ok';
-- What providers can be asked about: see uncertain_costs().
create index api_usage_logs_uncertain on taffrail.api_usage_logs (provider, started_at)
    where unpriced_reason is not null or cost_source = 'estimated';

comment on table taffrail.api_usage_logs is
    'One row per request or job that can cost money, inserted once by record_usage() and changed only by re-costing and receipts. Null is unknown, never zero.';
comment on column taffrail.api_usage_logs.id is 'UUIDv7, made when the request started; derived from provider and job id for jobs.';
comment on column taffrail.api_usage_logs.day is 'The UTC day that the id names: the partition that the row was born into, whatever clocks say later.';
comment on column taffrail.api_usage_logs.started_at is 'When the request reached the sidecar, by the sidecar''s clock.';
comment on column taffrail.api_usage_logs.instance is 'The process that metered it: the pod''s name, else the host''s.';
comment on column taffrail.api_usage_logs.namespace is 'The Kubernetes namespace of the pod.';
comment on column taffrail.api_usage_logs.pod is 'The name of the pod.';
comment on column taffrail.api_usage_logs.provider is 'The provider''s name, as in the route.';
comment on column taffrail.api_usage_logs.operation is 'What was asked: chat, embeddings, image and so on.';
comment on column taffrail.api_usage_logs.method is 'The HTTP method.';
comment on column taffrail.api_usage_logs.route is 'The path with its ids replaced; never a query.';
comment on column taffrail.api_usage_logs.model_requested is 'The model that the request named.';
comment on column taffrail.api_usage_logs.model_served is 'The model that the response named.';
comment on column taffrail.api_usage_logs.upstream_provider is 'Whom a router passed the request to.';
comment on column taffrail.api_usage_logs.service_tier is 'The tier that was billed.';
comment on column taffrail.api_usage_logs.streamed is 'Whether the response was a stream of events.';
comment on column taffrail.api_usage_logs.job_id is 'The provider''s id of an asynchronous job.';
comment on column taffrail.api_usage_logs.polls is 'How often the job was asked for until its end.';
comment on column taffrail.api_usage_logs.provider_request_id is 'The provider''s id of the request or response.';
comment on column taffrail.api_usage_logs.outcome is 'How it ended: ok, rate_limited, upstream_error and so on.';
comment on column taffrail.api_usage_logs.http_status is 'The status that the provider answered with.';
comment on column taffrail.api_usage_logs.error_code is 'The provider''s own code of an error.';
comment on column taffrail.api_usage_logs.error_message is 'The provider''s message, scrubbed of secrets, at most 256 characters.';
comment on column taffrail.api_usage_logs.finish_reason is 'Why generation ended, in the provider''s own word.';
comment on column taffrail.api_usage_logs.duration_us is 'From the request''s head to the response''s last byte, in microseconds.';
comment on column taffrail.api_usage_logs.first_byte_us is 'To the first byte of the response, in microseconds.';
comment on column taffrail.api_usage_logs.first_token_us is 'To the first generated token, in microseconds.';
comment on column taffrail.api_usage_logs.overhead_us is 'What the sidecar itself took, in microseconds.';
comment on column taffrail.api_usage_logs.queue_us is 'How long a job waited, in microseconds.';
comment on column taffrail.api_usage_logs.run_us is 'How long a job ran, in microseconds.';
comment on column taffrail.api_usage_logs.request_bytes is 'Bytes of the request''s body.';
comment on column taffrail.api_usage_logs.response_bytes is 'Bytes of the response''s body.';
comment on column taffrail.api_usage_logs.input_tokens is 'Input tokens that no cache served. All quantities of tokens are disjoint.';
comment on column taffrail.api_usage_logs.cache_read_tokens is 'Input tokens read from a cache.';
comment on column taffrail.api_usage_logs.cache_write_5m_tokens is 'Input tokens written to a cache for five minutes.';
comment on column taffrail.api_usage_logs.cache_write_1h_tokens is 'Input tokens written to a cache for an hour.';
comment on column taffrail.api_usage_logs.cache_write_tokens is 'Input tokens written to a cache for another or unstated time.';
comment on column taffrail.api_usage_logs.output_tokens is 'Output tokens without reasoning.';
comment on column taffrail.api_usage_logs.reasoning_tokens is 'Output tokens of reasoning.';
comment on column taffrail.api_usage_logs.input_audio_tokens is 'Input tokens of audio.';
comment on column taffrail.api_usage_logs.output_audio_tokens is 'Output tokens of audio.';
comment on column taffrail.api_usage_logs.input_image_tokens is 'Input tokens of images.';
comment on column taffrail.api_usage_logs.output_image_tokens is 'Output tokens of images.';
comment on column taffrail.api_usage_logs.units is 'The other quantities, by unit: images, seconds, searches. Decimals as strings.';
comment on column taffrail.api_usage_logs.fidelity is 'How far the usage can be trusted: complete, partial, silent and so on.';
comment on column taffrail.api_usage_logs.raw_usage is 'The provider''s own usage object, verbatim.';
comment on column taffrail.api_usage_logs.cost_usd is 'What it cost all parties together, in US dollars; null is unknown.';
comment on column taffrail.api_usage_logs.cost_upstream_usd is 'The part of cost_usd that another party bills.';
comment on column taffrail.api_usage_logs.cost_source is 'Where the cost comes from: provider, catalog or estimated.';
comment on column taffrail.api_usage_logs.price_version is 'The version of the price book that priced it.';
comment on column taffrail.api_usage_logs.unpriced_reason is 'Why the cost is unknown.';
comment on column taffrail.api_usage_logs.recosted_at is 'When the cost was last computed anew.';
comment on column taffrail.api_usage_logs.key_fingerprint is 'A keyed hash of the API key; the key itself is nowhere.';
comment on column taffrail.api_usage_logs.attribution is 'Attribution labels and their values.';
comment on column taffrail.api_usage_logs.trace_id is 'From the request''s traceparent.';
comment on column taffrail.api_usage_logs.span_id is 'From the request''s traceparent.';
