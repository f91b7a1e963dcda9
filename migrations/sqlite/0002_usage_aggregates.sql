-- Sums over api_usage_logs by hour and by day, kept by the same transaction that inserts the
-- rows, so that they always equal the sum over the rows. They outlive the rows.
--
-- A quantity is null where no row of the bucket knew it; the others are sums of what was known.
-- `cost_usd` is the sum of the known costs, and `unpriced_requests` counts the rows with
-- an `unpriced_reason`.
create table api_usage_aggregates (
    granularity            text    not null check (granularity in ('hour', 'day')),
    bucket_start           text    not null,
    namespace              text    not null, -- of the pod, else ''
    provider               text    not null,
    model                  text    not null, -- the served model, else the requested one, else ''
    operation              text    not null,
    outcome_class          text    not null, -- ok, error, cancelled
    attribution            text    not null, -- json, keys sorted
    requests               integer not null,
    unpriced_requests      integer not null,
    cost_usd               text,
    cost_upstream_usd      text,
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
    units                  text,             -- json of the other quantities, by unit
    primary key (
        granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution
    )
) strict, without rowid;
