-- Sums over api_usage_logs by hour and by day, kept by the same transaction that inserts the
-- rows, so that they always equal the sum over the rows. They outlive the rows.
--
-- Each bucket is spread over shards, so that many sidecars do not queue for one row; whoever
-- reads sums over them, or reads the view. Key texts compare as bytes: that is fast, the same in
-- every locale, and survives an upgrade of the system's collations.
--
-- No amount is NaN or infinite: it would stay in its sum for ever. NaN compares as the greatest
-- number. Such a row is refused with its sums, and so no check of its own costs anything.
create table taffrail.api_usage_aggregates (
    granularity            text        collate "C" not null check (granularity in ('hour', 'day')),
    bucket_start           timestamptz not null,
    namespace              text        collate "C" not null,
    provider               text        collate "C" not null,
    model                  text        collate "C" not null,
    operation              text        collate "C" not null,
    outcome_class          text        collate "C" not null,
    attribution            jsonb       not null,
    shard                  smallint    not null,
    requests               bigint      not null,
    unpriced_requests      bigint      not null,
    cost_usd               numeric
        constraint cost_usd_is_finite check (cost_usd > '-Infinity' and cost_usd < 'Infinity'),
    cost_upstream_usd      numeric
        constraint cost_upstream_usd_is_finite check (cost_upstream_usd > '-Infinity' and cost_upstream_usd < 'Infinity'),
    input_tokens           numeric,
    cache_read_tokens      numeric,
    cache_write_5m_tokens  numeric,
    cache_write_1h_tokens  numeric,
    cache_write_tokens     numeric,
    output_tokens          numeric,
    reasoning_tokens       numeric,
    input_audio_tokens     numeric,
    output_audio_tokens    numeric,
    input_image_tokens     numeric,
    output_image_tokens    numeric,
    units                  jsonb
        constraint units_are_finite check (not units @? '$.* ? (@ == "NaN" || @ == "Infinity" || @ == "-Infinity")'),
    primary key (granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution, shard)
) with (fillfactor = 70);

comment on table taffrail.api_usage_aggregates is
    'Sums of the rows of an hour or a day, by namespace, provider, model, operation, outcome class and attribution, spread over shards: sum over them, or read api_usage_buckets. A quantity is null where no row knew it.';
comment on column taffrail.api_usage_aggregates.granularity is 'hour or day.';
comment on column taffrail.api_usage_aggregates.bucket_start is 'The start of the hour or day, in UTC.';
comment on column taffrail.api_usage_aggregates.namespace is 'As in api_usage_logs, else the empty text.';
comment on column taffrail.api_usage_aggregates.provider is 'As in api_usage_logs.';
comment on column taffrail.api_usage_aggregates.model is 'The served model, else the requested one, else the empty text.';
comment on column taffrail.api_usage_aggregates.operation is 'As in api_usage_logs.';
comment on column taffrail.api_usage_aggregates.outcome_class is 'ok, error or cancelled.';
comment on column taffrail.api_usage_aggregates.attribution is 'As in api_usage_logs.';
comment on column taffrail.api_usage_aggregates.shard is 'Spreads writers; it has no meaning.';
comment on column taffrail.api_usage_aggregates.requests is 'How many rows.';
comment on column taffrail.api_usage_aggregates.unpriced_requests is 'How many of them have an unpriced_reason.';
comment on column taffrail.api_usage_aggregates.cost_usd is 'The sum of the known costs.';
comment on column taffrail.api_usage_aggregates.cost_upstream_usd is 'The sum of what another party bills.';
comment on column taffrail.api_usage_aggregates.input_tokens is 'The sum of what was known; so are the other tokens.';
comment on column taffrail.api_usage_aggregates.cache_read_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.cache_write_5m_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.cache_write_1h_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.cache_write_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.output_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.reasoning_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.input_audio_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.output_audio_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.input_image_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.output_image_tokens is 'See input_tokens.';
comment on column taffrail.api_usage_aggregates.units is 'The sums of the other quantities, by unit. Decimals as strings.';

-- The sum of two sets of quantities by unit. Strict: an unknown set leaves the other one alone
-- when it is the transition of the aggregate below.
create function taffrail.add_units(a jsonb, b jsonb) returns jsonb
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(unit, quantity::text), '{}')
    from (
        select unit, sum(quantity::numeric) as quantity
        from (
            select * from jsonb_each_text(a)
            union all
            select * from jsonb_each_text(b)
        ) as terms (unit, quantity)
        group by unit
    ) as sums
$$;
comment on function taffrail.add_units(jsonb, jsonb) is 'The sum of two sets of quantities by unit.';

create aggregate taffrail.sum_units(jsonb) (
    sfunc = taffrail.add_units,
    stype = jsonb,
    combinefunc = taffrail.add_units,
    parallel = safe
);
comment on aggregate taffrail.sum_units(jsonb) is 'The sum of sets of quantities by unit; null where none is known.';

create view taffrail.api_usage_buckets with (security_invoker = true) as
select
    granularity,
    bucket_start,
    namespace,
    provider,
    model,
    operation,
    outcome_class,
    attribution,
    sum(requests)::bigint as requests,
    sum(unpriced_requests)::bigint as unpriced_requests,
    sum(cost_usd) as cost_usd,
    sum(cost_upstream_usd) as cost_upstream_usd,
    sum(input_tokens) as input_tokens,
    sum(cache_read_tokens) as cache_read_tokens,
    sum(cache_write_5m_tokens) as cache_write_5m_tokens,
    sum(cache_write_1h_tokens) as cache_write_1h_tokens,
    sum(cache_write_tokens) as cache_write_tokens,
    sum(output_tokens) as output_tokens,
    sum(reasoning_tokens) as reasoning_tokens,
    sum(input_audio_tokens) as input_audio_tokens,
    sum(output_audio_tokens) as output_audio_tokens,
    sum(input_image_tokens) as input_image_tokens,
    sum(output_image_tokens) as output_image_tokens,
    taffrail.sum_units(units) as units
from taffrail.api_usage_aggregates
group by granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution;
comment on view taffrail.api_usage_buckets is 'api_usage_aggregates with its shards summed: one row per bucket.';
