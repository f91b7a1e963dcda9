-- One row per request or job, as settled by the sidecar; the columns are the contract that
-- `taffrail logs --format json` prints. Rows are inserted once and changed only by re-costing.
--
-- SQLite has no decimal type: amounts are decimal text, exact, and summed outside SQL.
-- Timestamps are RFC 3339 text in UTC with six decimals, so that they sort as text.
create table api_usage_logs (
    id                     text    not null primary key,
    day                    text    not null,
    started_at             text    not null,
    instance               text    not null,
    namespace              text,
    pod                    text,
    provider               text    not null,
    operation              text    not null,
    method                 text    not null,
    route                  text    not null,
    model_requested        text,
    model_served           text,
    upstream_provider      text,
    service_tier           text,
    streamed               integer not null check (streamed in (0, 1)),
    job_id                 text,
    polls                  integer,
    provider_request_id    text,
    outcome                text    not null,
    http_status            integer,
    error_code             text,
    error_message          text,
    finish_reason          text,
    duration_us            integer,
    first_byte_us          integer,
    first_token_us         integer,
    overhead_us            integer,
    queue_us               integer,
    run_us                 integer,
    request_bytes          integer,
    response_bytes         integer,
    input_tokens           integer,
    cache_read_tokens      integer,
    cache_write_5m_tokens  integer,
    cache_write_1h_tokens  integer,
    cache_write_tokens     integer,
    output_tokens          integer,
    reasoning_tokens       integer,
    input_audio_tokens     integer,
    output_audio_tokens    integer,
    input_image_tokens     integer,
    output_image_tokens    integer,
    units                  text,
    fidelity               text    not null,
    raw_usage              text,
    cost_usd               text,
    cost_upstream_usd      text,
    cost_source            text,
    price_version          text,
    unpriced_reason        text,
    recosted_at            text,
    key_fingerprint        text,
    attribution            text    not null default '{}',
    trace_id               text,
    span_id                text
) strict;

-- `taffrail logs` pages through it backwards, `taffrail usage` reads a window of it forwards.
create index api_usage_logs_started_at on api_usage_logs (started_at desc, id desc);
-- Those pages by provider, which may have few rows among many, and by outcome. What went well is
-- found without an index of its own, and costs none.
create index api_usage_logs_provider on api_usage_logs (provider, started_at desc, id desc);
create index api_usage_logs_outcome on api_usage_logs (outcome, started_at desc, id desc)
    where outcome <> 'ok';
