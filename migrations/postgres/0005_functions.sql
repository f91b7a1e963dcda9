-- The ways in: rows with their sums, a bucket alone, and the sums from the rows anew.

-- The class of an outcome, as the metrics have it. A test holds it equal to the program's. Not
-- strict: the planner would call it for each row instead of putting its expression in its place.
create function taffrail.outcome_class(outcome text) returns text
language sql immutable parallel safe
as $$
    select case outcome
        when 'ok' then 'ok'
        when 'content_filtered' then 'ok'
        when 'client_cancelled' then 'cancelled'
        else 'error'
    end
$$;
comment on function taffrail.outcome_class(text) is 'The class of an outcome: ok, error or cancelled.';

-- Adds to buckets, atomically for each. Always in the order of the key: two callers that lock the
-- same buckets in different orders would wait for each other for ever. In plpgsql, which keeps the
-- plan from call to call; to plan this takes longer than 20 buckets.
create function taffrail.upsert_usage_aggregate(variadic buckets taffrail.api_usage_aggregates[]) returns void
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
begin
    insert into taffrail.api_usage_aggregates as sums (
        granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution,
        shard, requests, unpriced_requests, cost_usd, cost_upstream_usd, input_tokens,
        cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cache_write_tokens,
        output_tokens, reasoning_tokens, input_audio_tokens, output_audio_tokens,
        input_image_tokens, output_image_tokens, units
    )
    select
        granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution,
        shard, requests, unpriced_requests, cost_usd, cost_upstream_usd, input_tokens,
        cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cache_write_tokens,
        output_tokens, reasoning_tokens, input_audio_tokens, output_audio_tokens,
        input_image_tokens, output_image_tokens, units
    from unnest(buckets)
    order by granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution, shard
    on conflict (granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution, shard)
    do update set
        requests = sums.requests + excluded.requests,
        unpriced_requests = sums.unpriced_requests + excluded.unpriced_requests,
        cost_usd = coalesce(sums.cost_usd + excluded.cost_usd, sums.cost_usd, excluded.cost_usd),
        cost_upstream_usd = coalesce(sums.cost_upstream_usd + excluded.cost_upstream_usd, sums.cost_upstream_usd, excluded.cost_upstream_usd),
        input_tokens = coalesce(sums.input_tokens + excluded.input_tokens, sums.input_tokens, excluded.input_tokens),
        cache_read_tokens = coalesce(sums.cache_read_tokens + excluded.cache_read_tokens, sums.cache_read_tokens, excluded.cache_read_tokens),
        cache_write_5m_tokens = coalesce(sums.cache_write_5m_tokens + excluded.cache_write_5m_tokens, sums.cache_write_5m_tokens, excluded.cache_write_5m_tokens),
        cache_write_1h_tokens = coalesce(sums.cache_write_1h_tokens + excluded.cache_write_1h_tokens, sums.cache_write_1h_tokens, excluded.cache_write_1h_tokens),
        cache_write_tokens = coalesce(sums.cache_write_tokens + excluded.cache_write_tokens, sums.cache_write_tokens, excluded.cache_write_tokens),
        output_tokens = coalesce(sums.output_tokens + excluded.output_tokens, sums.output_tokens, excluded.output_tokens),
        reasoning_tokens = coalesce(sums.reasoning_tokens + excluded.reasoning_tokens, sums.reasoning_tokens, excluded.reasoning_tokens),
        input_audio_tokens = coalesce(sums.input_audio_tokens + excluded.input_audio_tokens, sums.input_audio_tokens, excluded.input_audio_tokens),
        output_audio_tokens = coalesce(sums.output_audio_tokens + excluded.output_audio_tokens, sums.output_audio_tokens, excluded.output_audio_tokens),
        input_image_tokens = coalesce(sums.input_image_tokens + excluded.input_image_tokens, sums.input_image_tokens, excluded.input_image_tokens),
        output_image_tokens = coalesce(sums.output_image_tokens + excluded.output_image_tokens, sums.output_image_tokens, excluded.output_image_tokens),
        units = coalesce(taffrail.add_units(sums.units, excluded.units), sums.units, excluded.units);
end
$$;
comment on function taffrail.upsert_usage_aggregate(taffrail.api_usage_aggregates[]) is
    'Adds to buckets, each atomically and in the order of the key. The buckets must differ in their keys.';

-- A row as it arrives.
create type taffrail.incoming_usage as (
    id uuid, day date, started_at timestamptz, instance text, namespace text, pod text,
    provider text, operation text, method text, route text, model_requested text,
    model_served text, upstream_provider text, service_tier text, streamed boolean, job_id text,
    polls bigint, provider_request_id text, outcome text, http_status smallint, error_code text,
    error_message text, finish_reason text, duration_us bigint, first_byte_us bigint,
    first_token_us bigint, overhead_us bigint, queue_us bigint, run_us bigint,
    request_bytes bigint, response_bytes bigint, input_tokens bigint, cache_read_tokens bigint,
    cache_write_5m_tokens bigint, cache_write_1h_tokens bigint, cache_write_tokens bigint,
    output_tokens bigint, reasoning_tokens bigint, input_audio_tokens bigint,
    output_audio_tokens bigint, input_image_tokens bigint, output_image_tokens bigint,
    units jsonb, fidelity text, raw_usage text, cost_usd numeric, cost_upstream_usd numeric,
    cost_source text, price_version text, unpriced_reason text, recosted_at timestamptz,
    key_fingerprint text, attribution jsonb, trace_id text, span_id text
);
comment on type taffrail.incoming_usage is 'A row of api_usage_logs on its way in: raw_usage is still text.';

-- Inserts the rows whose id is new, and adds exactly those to the sums, in one transaction. A job
-- has one row: that of another id for a job that has its row is not inserted.
-- Takes a JSON array of rows as `taffrail logs --format json` prints them, but for raw_usage,
-- which is its text, so that what a provider wrote is never decoded. Columns that are missing
-- are null and unknown ones are passed over: versions of the program may differ.
-- Returns how many rows were inserted; the others were there already.
create function taffrail.record_usage(batch text) returns bigint
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
declare
    incoming taffrail.incoming_usage[];
    jobs taffrail.incoming_usage[];
    refused uuid[];
    days date[];
    buckets taffrail.api_usage_aggregates[];
    inserted bigint;
begin
    -- Read once: the days must have their locks and partitions before the insertion starts.
    -- The calls that only ask for a job have rows of their own, if any.
    select
        array_agg(rows), array_agg(distinct day order by day),
        array_agg(rows) filter (where job_id is not null and operation <> 'control')
    into incoming, days, jobs
    from json_populate_recordset(null::taffrail.incoming_usage, batch::json) as rows;
    -- A rebuild of the sums of a day, its end and the rows that arrive for it take turns.
    perform pg_advisory_xact_lock_shared(hashtext('taffrail.aggregates'), wanted - date '2000-01-01')
    from unnest(days) as wanted;
    perform taffrail.ensure_partition(wanted) from unnest(days) as wanted;
    if jobs is not null then
        with gate as (
            insert into taffrail.api_jobs as known (provider, job_id, id, recorded_at, updated_at)
            select distinct on (provider, job_id) provider, job_id, id, now(), now()
            from unnest(jobs)
            -- Always in the order of the key, as exchange_jobs() takes it.
            order by provider, job_id, id
            on conflict (provider, job_id) do update set
                id = case when known.recorded_at is null then excluded.id else known.id end,
                submit_half = null,
                end_half = null,
                recorded_at = coalesce(known.recorded_at, excluded.recorded_at),
                updated_at = excluded.updated_at
            returning provider, job_id, id
        )
        select array_agg(id) into refused
        from (
            select provider, job_id, id from unnest(jobs)
            except
            select provider, job_id, id from gate
        ) as beyond;
    end if;
    with fresh as (
        insert into taffrail.api_usage_logs (
            id, day, started_at, instance, namespace, pod, provider, operation, method, route,
            model_requested, model_served, upstream_provider, service_tier, streamed, job_id,
            polls, provider_request_id, outcome, http_status, error_code, error_message,
            finish_reason, duration_us, first_byte_us, first_token_us, overhead_us, queue_us,
            run_us, request_bytes, response_bytes, input_tokens, cache_read_tokens,
            cache_write_5m_tokens, cache_write_1h_tokens, cache_write_tokens, output_tokens,
            reasoning_tokens, input_audio_tokens, output_audio_tokens, input_image_tokens,
            output_image_tokens, units, fidelity, raw_usage, cost_usd, cost_upstream_usd,
            cost_source, price_version, unpriced_reason, recosted_at, key_fingerprint,
            attribution, trace_id, span_id
        )
        select
            id, day, started_at, instance, namespace, pod, provider, operation, method, route,
            model_requested, model_served, upstream_provider, service_tier, streamed, job_id,
            polls, provider_request_id, outcome, http_status, error_code, error_message,
            finish_reason, duration_us, first_byte_us, first_token_us, overhead_us, queue_us,
            run_us, request_bytes, response_bytes, input_tokens, cache_read_tokens,
            cache_write_5m_tokens, cache_write_1h_tokens, cache_write_tokens, output_tokens,
            reasoning_tokens, input_audio_tokens, output_audio_tokens, input_image_tokens,
            output_image_tokens, units, fidelity, raw_usage::json, cost_usd, cost_upstream_usd,
            cost_source, price_version, unpriced_reason, recosted_at, key_fingerprint,
            coalesce(attribution, '{}'), trace_id, span_id
        from unnest(incoming)
        where refused is null or id <> all (refused)
        order by day, id
        on conflict (id, day) do nothing
        returning
            started_at, instance, namespace, provider, operation, model_requested, model_served,
            outcome, attribution, unpriced_reason, cost_usd, cost_upstream_usd,
            input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
            cache_write_tokens, output_tokens, reasoning_tokens, input_audio_tokens,
            output_audio_tokens, input_image_tokens, output_image_tokens, units
    ),
    sums as (
        select
            span.granularity, date_trunc(span.granularity, started_at, 'UTC'),
            coalesce(namespace, ''), provider,
            coalesce(model_served, model_requested, ''), operation,
            taffrail.outcome_class(outcome), attribution, mod(abs(hashtext(instance)::bigint), 16)::smallint,
            count(*), count(unpriced_reason),
            sum(cost_usd), sum(cost_upstream_usd), sum(input_tokens), sum(cache_read_tokens),
            sum(cache_write_5m_tokens), sum(cache_write_1h_tokens), sum(cache_write_tokens),
            sum(output_tokens), sum(reasoning_tokens), sum(input_audio_tokens),
            sum(output_audio_tokens), sum(input_image_tokens), sum(output_image_tokens),
            -- Added to nothing, so that a quantity that is no number is refused with its row.
            taffrail.add_units('{}', taffrail.sum_units(units))
        from fresh
        cross join (values ('hour'), ('day')) as span (granularity)
        group by 1, 2, 3, 4, 5, 6, 7, 8, 9
    )
    select
        (select count(*) from fresh),
        (select array_agg(sums::taffrail.api_usage_aggregates) from sums)
    into inserted, buckets;
    perform taffrail.upsert_usage_aggregate(variadic buckets);
    return inserted;
end
$$;
comment on function taffrail.record_usage(text) is
    'Inserts the rows of a JSON array whose id is new, adds exactly those to the sums, and returns how many they were.';

-- Takes in what a process knows of jobs, and answers what is known of those that it asks for.
-- Takes a JSON array of objects, one for each provider and job_id, with either half as text, or
-- none to ask only:
--   {"provider", "job_id", "id", "submitted_at", "deadline_at", "submit_half"}
--   {"provider", "job_id", "id", "ended_at", "is_settled", "end_half"}
--   {"provider", "job_id"}
-- Returns a JSON array: {"provider", "job_id", "is_recorded", "end_half"} for each job that was not
-- told the end of and that has its row, or whose end another process has seen.
create function taffrail.exchange_jobs(batch text) returns text
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
begin
    insert into taffrail.api_jobs as known (
        provider, job_id, id, submitted_at, deadline_at, ended_at, is_settled, submit_half, end_half,
        updated_at
    )
    select distinct on (provider, job_id)
        provider, job_id, id, submitted_at, deadline_at, ended_at, coalesce(is_settled, false),
        submit_half::json, end_half::json, now()
    from json_to_recordset(batch::json) as told (
        provider text, job_id text, id uuid, submitted_at timestamptz, deadline_at timestamptz,
        ended_at timestamptz, is_settled boolean, submit_half text, end_half text
    )
    where submit_half is not null or end_half is not null
    -- Always in the order of the key, as record_usage() takes it.
    order by provider, job_id
    on conflict (provider, job_id) do update set
        id = case when excluded.submit_half is null then known.id else excluded.id end,
        submitted_at = coalesce(excluded.submitted_at, known.submitted_at),
        deadline_at = coalesce(excluded.deadline_at, known.deadline_at),
        submit_half = coalesce(excluded.submit_half, known.submit_half),
        ended_at = coalesce(known.ended_at, excluded.ended_at),
        is_settled = known.is_settled or excluded.is_settled,
        end_half = coalesce(excluded.end_half, known.end_half),
        updated_at = excluded.updated_at
    where known.recorded_at is null
        and case when excluded.end_half is null
            then known.submit_half is null
            else known.end_half is null or (excluded.is_settled and not known.is_settled)
        end;
    return (
        select coalesce(json_agg(json_build_object(
            'provider', provider,
            'job_id', job_id,
            'is_recorded', recorded_at is not null,
            'end_half', job.end_half::text
        )), '[]')
        from json_to_recordset(batch::json) as told (provider text, job_id text, end_half text)
        join taffrail.api_jobs as job using (provider, job_id)
        where told.end_half is null and (recorded_at is not null or job.end_half is not null)
    );
end
$$;
comment on function taffrail.exchange_jobs(text) is
    'Takes in the halves of jobs that a process knows, and returns what others know of the jobs that it names.';

-- The jobs without a row whose last half has waited for the other one for too long, or whose
-- deadline is that long over, oldest first: a JSON array of {"submit_half", "end_half"}, as text or
-- null.
create function taffrail.overdue_jobs(grace interval, rows_max integer) returns text
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    select coalesce(json_agg(json_build_object(
        'submit_half', submit_half::text, 'end_half', end_half::text
    ) order by updated_at), '[]')::text
    from (
        select submit_half, end_half, updated_at
        from taffrail.api_jobs
        where recorded_at is null
            and updated_at <= now() - grace
            and (end_half is not null or deadline_at <= now() - grace)
        order by updated_at
        limit rows_max
    ) as overdue
$$;
comment on function taffrail.overdue_jobs(interval, integer) is
    'The halves of jobs that have no row and wait in vain for the other half or an end.';

-- Forgets jobs that got their row before a day, at most that many at a time; returns how many.
create function taffrail.drop_jobs(before date, rows_max integer) returns bigint
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    with dropped as (
        delete from taffrail.api_jobs
        where ctid = any (array(
            select ctid from taffrail.api_jobs
            where recorded_at < before::timestamp at time zone 'UTC'
            limit rows_max
            for update skip locked
        ))
        returning 1
    )
    select count(*) from dropped
$$;
comment on function taffrail.drop_jobs(date, integer) is 'Forgets jobs that got their row before a day, some at a time; returns how many.';

-- Takes in a reading of an account: a JSON array of its parts. A slot has one reading: what comes
-- second changes nothing, unless it succeeded where the first did not. Returns whether it was taken.
create function taffrail.record_balance(reading text) returns boolean
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    with told as (
        select * from json_to_recordset(reading::json) as part (
            provider text, account text, slot timestamptz, part smallint, read_at timestamptz,
            result text, kind text, currency text, balance numeric, detail text, raw text
        )
    ), taken as (
        insert into taffrail.api_provider_balances as known (
            provider, account, slot, part, read_at, result, kind, currency, balance, detail, raw
        )
        select provider, account, slot, part, read_at, result, kind, currency, balance, detail, raw::json
        from told
        where part = 0
        on conflict (provider, account, slot, part) do update set
            read_at = excluded.read_at, result = excluded.result, kind = excluded.kind,
            currency = excluded.currency, balance = excluded.balance, detail = excluded.detail,
            raw = excluded.raw
        where known.result <> 'ok' and excluded.result = 'ok'
        returning 1
    ), others as (
        insert into taffrail.api_provider_balances (
            provider, account, slot, part, read_at, result, kind, currency, balance, detail, raw
        )
        select provider, account, slot, part, read_at, result, kind, currency, balance, detail, raw::json
        from told
        where part > 0 and exists (select from taken)
        on conflict (provider, account, slot, part) do nothing
    )
    select exists (select from taken)
$$;
comment on function taffrail.record_balance(text) is
    'Takes in a reading of an account, once for its slot; returns whether it was taken.';

-- Drops readings of balances of before a day, at most that many rows at a time; returns how many.
create function taffrail.drop_balances(before date, rows_max integer) returns bigint
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    with dropped as (
        delete from taffrail.api_provider_balances
        where ctid = any (array(
            select ctid from taffrail.api_provider_balances
            where read_at < before::timestamp at time zone 'UTC'
            limit rows_max
            for update skip locked
        ))
        returning 1
    )
    select count(*) from dropped
$$;
comment on function taffrail.drop_balances(date, integer) is 'Drops readings of balances of before a day, some at a time; returns how many.';

-- Takes or keeps a lease; returns whether the holder has it now.
create function taffrail.take_lease(wanted text, by_holder text, lasting interval) returns boolean
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    with taken as (
        insert into taffrail.leases as known (name, holder, expires_at)
        values (wanted, by_holder, now() + lasting)
        on conflict (name) do update set holder = excluded.holder, expires_at = excluded.expires_at
        where known.holder = excluded.holder or known.expires_at <= now()
        returning 1
    )
    select exists (select from taken)
$$;
comment on function taffrail.take_lease(text, text, interval) is
    'Takes or keeps a lease; returns whether the holder has it now.';

-- What traffic shows of accounts: by provider and fingerprint of the key, the last refusals of a
-- kind that is the account's, and whether a request of that key succeeded since. A JSON array.
create function taffrail.account_signals(lasting interval) returns text
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    select coalesce(json_agg(json_build_object(
        'provider', provider,
        'key_fingerprint', key_fingerprint,
        'outcome', outcome,
        'at', to_char(last_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'is_over', exists (
            select from taffrail.api_usage_logs as later
            where later.provider = refused.provider
                and later.key_fingerprint is not distinct from refused.key_fingerprint
                and later.outcome = 'ok'
                and later.started_at > refused.last_at
                and later.day >= (refused.last_at at time zone 'UTC')::date - 1
        )
    )), '[]')::text
    from (
        select provider, key_fingerprint, outcome, max(started_at) as last_at
        from taffrail.api_usage_logs
        where outcome in ('quota_exhausted', 'account_locked', 'rate_limited')
            and outcome <> 'ok'
            and started_at > now() - lasting
            and day >= ((now() - lasting) at time zone 'UTC')::date - 1
        group by provider, key_fingerprint, outcome
    ) as refused
$$;
comment on function taffrail.account_signals(interval) is
    'What traffic shows of accounts: refusals for want of money, of locked accounts and of too many requests.';

-- What requests to a provider cost that started from one moment to before another, by fingerprint
-- of the key. A JSON array; decimals as text.
create function taffrail.metered_spend(of_provider text, from_time timestamptz, to_time timestamptz) returns text
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    select coalesce(json_agg(json_build_object(
        'key_fingerprint', key_fingerprint,
        'requests', requests,
        'unpriced_requests', unpriced_requests,
        'cost_usd', cost_usd::text,
        'cost_upstream_usd', cost_upstream_usd::text
    )), '[]')::text
    from (
        select key_fingerprint, count(*) as requests,
            count(unpriced_reason) as unpriced_requests,
            sum(cost_usd) as cost_usd, sum(cost_upstream_usd) as cost_upstream_usd
        from taffrail.api_usage_logs
        where provider = of_provider and started_at >= from_time and started_at < to_time
            and day between (from_time at time zone 'UTC')::date - 1 and (to_time at time zone 'UTC')::date + 1
        group by key_fingerprint
    ) as keys
$$;
comment on function taffrail.metered_spend(text, timestamptz, timestamptz) is
    'What requests to a provider cost within a window, by fingerprint of the key.';

-- Takes in reconciliations: a JSON array of rows. A day's last bill holds; a failure takes the place
-- of no bill.
create function taffrail.record_reconciliations(rows text) returns bigint
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    with taken as (
        insert into taffrail.api_reconciliations as known (
            provider, account, day, window_start, window_end, read_at, result, source,
            provider_spend_usd, metered_usd, unmetered_usd, upstream_usd, requests,
            unpriced_requests, metered_keys, unclaimed_keys, detail
        )
        select provider, account, day, window_start, window_end, read_at, result, source,
            provider_spend_usd, metered_usd, unmetered_usd, upstream_usd, requests,
            unpriced_requests, metered_keys, unclaimed_keys, detail
        from json_to_recordset(rows::json) as told (
            provider text, account text, day date, window_start timestamptz,
            window_end timestamptz, read_at timestamptz, result text, source text,
            provider_spend_usd numeric, metered_usd numeric, unmetered_usd numeric,
            upstream_usd numeric, requests bigint, unpriced_requests bigint,
            metered_keys integer, unclaimed_keys integer, detail text
        )
        order by provider, account, day
        on conflict (provider, account, day) do update set
            window_start = excluded.window_start, window_end = excluded.window_end,
            read_at = excluded.read_at, result = excluded.result, source = excluded.source,
            provider_spend_usd = excluded.provider_spend_usd, metered_usd = excluded.metered_usd,
            unmetered_usd = excluded.unmetered_usd, upstream_usd = excluded.upstream_usd,
            requests = excluded.requests, unpriced_requests = excluded.unpriced_requests,
            metered_keys = excluded.metered_keys, unclaimed_keys = excluded.unclaimed_keys,
            detail = excluded.detail
        where excluded.result = 'ok' or known.result <> 'ok'
        returning 1
    )
    select count(*) from taken
$$;
comment on function taffrail.record_reconciliations(text) is
    'Takes in bills against what was metered, one for each account and day; returns how many were taken.';

-- The versions of price lists after a number, oldest first and a few at a time, as a JSON array of
-- {"number", "version", "source", "effective_from", "catalogue"}, the catalogue as text.
create function taffrail.price_versions_after(known bigint, rows_max integer) returns text
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    select coalesce(json_agg(json_build_object(
        'number', number, 'version', version, 'source', source,
        'effective_from', effective_from, 'catalogue', catalogue::text
    ) order by number), '[]')::text
    from (
        select * from taffrail.price_versions where number > known order by number limit rows_max
    ) as later
$$;
comment on function taffrail.price_versions_after(bigint, integer) is 'The versions of price lists after a number, as JSON.';

-- Adds a version of a source's list, unless another came after the number that its changes are from;
-- returns its number, or null.
create function taffrail.add_price_version(name text, list text, effective timestamptz, changes text, since bigint) returns bigint
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
declare
    following bigint;
begin
    -- In the order of their commits: a reader that knows a number has seen all before it.
    perform pg_advisory_xact_lock(hashtext('taffrail.price_versions'));
    if since <> (select coalesce(max(number), 0) from taffrail.price_versions where source = list) then
        return null;
    end if;
    select coalesce(max(number), 0) + 1 into following from taffrail.price_versions;
    insert into taffrail.price_versions (version, number, source, effective_from, created_at, catalogue)
    values (
        -- A price that goes back and forth on one day.
        case when exists (select from taffrail.price_versions where version = name) then name || '-' || following else name end,
        following, list, effective, now(), changes::json
    );
    return following;
end
$$;
comment on function taffrail.add_price_version(text, text, timestamptz, text, bigint) is
    'Adds a version of a source''s price list, unless somebody else did so first; returns its number.';

-- Notes that a source was read, and what of it is held back.
create function taffrail.note_price_refresh(list text, changes text, reason text) returns boolean
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    insert into taffrail.price_refreshes (source, checked_at, held_back, held_back_reason)
    values (list, now(), changes::json, reason)
    on conflict (source) do update set
        checked_at = excluded.checked_at,
        held_back = excluded.held_back,
        held_back_reason = excluded.held_back_reason
    returning true
$$;
comment on function taffrail.note_price_refresh(text, text, text) is 'Notes that a source of prices was read in full, and what of it is held back.';

-- Gives rows another cost, of an array of {"id", "day", "old_cost_usd", "cost_usd", "cost_source",
-- "price_version"}, moves the sums along and keeps what was. A row that has another cost by now, or
-- whose cost the provider stated, is left alone. Returns how many rows changed.
create function taffrail.recost_usage(batch text) returns bigint
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
declare
    days date[];
    buckets taffrail.api_usage_aggregates[];
    changed bigint;
begin
    select array_agg(distinct day order by day) into days
    from json_to_recordset(batch::json) as told (day date);
    -- As record_usage(): a rebuild of the sums of a day and what changes them take turns.
    perform pg_advisory_xact_lock_shared(hashtext('taffrail.aggregates'), wanted - date '2000-01-01')
    from unnest(days) as wanted;
    with before as materialized (
        select
            logs.id, logs.day, told.cost_usd, told.cost_upstream_usd, told.cost_source,
            told.price_version, logs.cost_usd as old_cost_usd,
            logs.cost_upstream_usd as old_cost_upstream_usd, logs.cost_source as old_cost_source,
            logs.price_version as old_price_version, logs.unpriced_reason as old_unpriced_reason,
            logs.started_at, logs.namespace, logs.provider, logs.model_served, logs.model_requested,
            logs.operation, logs.outcome, logs.attribution, logs.instance
        from json_to_recordset(batch::json) as told (
            id uuid, day date, old_cost_usd numeric, cost_usd numeric, cost_upstream_usd numeric,
            cost_source text, price_version text
        )
        join taffrail.api_usage_logs as logs on logs.id = told.id and logs.day = told.day
        where logs.cost_source is distinct from 'provider'
            and logs.cost_usd is not distinct from told.old_cost_usd
            and (told.cost_usd, told.cost_source) is distinct from (logs.cost_usd, logs.cost_source)
        order by logs.day, logs.id
        for update of logs
    ),
    updated as (
        update taffrail.api_usage_logs as logs set
            cost_usd = before.cost_usd,
            cost_upstream_usd = coalesce(before.cost_upstream_usd, logs.cost_upstream_usd),
            cost_source = before.cost_source,
            price_version = before.price_version,
            unpriced_reason = null,
            recosted_at = now()
        from before
        where logs.id = before.id and logs.day = before.day
        returning logs.id
    ),
    noted as (
        insert into taffrail.api_cost_changes (
            id, day, changed_at, old_cost_usd, old_cost_source, old_price_version,
            old_unpriced_reason, new_cost_usd, new_cost_source, new_price_version
        )
        select
            id, day, now(), old_cost_usd, old_cost_source, old_price_version,
            old_unpriced_reason, cost_usd, cost_source, price_version
        from before
        where id in (select id from updated)
        returning id
    ),
    sums as (
        select
            span.granularity, date_trunc(span.granularity, started_at, 'UTC'),
            coalesce(namespace, ''), provider,
            coalesce(model_served, model_requested, ''), operation,
            taffrail.outcome_class(outcome), attribution, mod(abs(hashtext(instance)::bigint), 16)::smallint,
            0::bigint, -count(old_unpriced_reason),
            sum(cost_usd - coalesce(old_cost_usd, 0)),
            sum(cost_upstream_usd - coalesce(old_cost_upstream_usd, 0)), null::numeric, null::numeric,
            null::numeric, null::numeric, null::numeric, null::numeric, null::numeric, null::numeric,
            null::numeric, null::numeric, null::numeric, null::jsonb
        from before
        cross join (values ('hour'), ('day')) as span (granularity)
        where id in (select id from noted)
        group by 1, 2, 3, 4, 5, 6, 7, 8, 9
    )
    select
        (select count(*) from noted),
        (select array_agg(sums::taffrail.api_usage_aggregates) from sums)
    into changed, buckets;
    perform taffrail.upsert_usage_aggregate(variadic buckets);
    return changed;
end
$$;
comment on function taffrail.recost_usage(text) is
    'Gives rows of a JSON array another cost, moves the sums along and keeps what was; returns how many rows changed.';

-- Rows whose cost is unknown or an estimate and that their provider may know by an id, of keys with
-- these fingerprints or of all: those that it was asked about least, oldest first. A JSON array;
-- decimals as text.
create function taffrail.uncertain_costs(
    of_provider text, from_time timestamptz, to_time timestamptz, of_keys text[],
    tries_max integer, rows_max integer
) returns text
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    select coalesce(json_agg(json_build_object(
        'id', id, 'day', day, 'started_at', started_at,
        'provider_request_id', provider_request_id, 'job_id', job_id,
        'cost_usd', cost_usd::text, 'tries', tries, 'all_rows', all_rows
    ) order by tries, started_at, id), '[]')::text
    from (
        select logs.id, day, started_at, provider_request_id, job_id, cost_usd,
            coalesce(known.tries, 0) as tries, count(*) over () as all_rows
        from taffrail.api_usage_logs as logs
        left join taffrail.api_receipt_tries as known on known.id = logs.id
        where (unpriced_reason is not null or cost_source = 'estimated')
            and coalesce(job_id, provider_request_id) is not null
            and provider = of_provider and started_at >= from_time and started_at < to_time
            and day between (from_time at time zone 'UTC')::date - 1 and (to_time at time zone 'UTC')::date + 1
            and (of_keys is null or key_fingerprint = any (of_keys))
            and coalesce(known.tries, 0) < tries_max
            and (known.next_at is null or known.next_at <= now())
        order by coalesce(known.tries, 0), started_at, logs.id
        limit rows_max
    ) as chosen
$$;
comment on function taffrail.uncertain_costs(text, timestamptz, timestamptz, text[], integer, integer) is
    'Rows whose cost is unknown or an estimate and that their provider may know, as a JSON array.';

-- As recost_usage(), for what providers say themselves: a JSON array of rows with their costs. It
-- returns how many rows changed.
create function taffrail.state_costs(batch text) returns bigint
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    select taffrail.recost_usage(coalesce(json_agg(json_build_object(
        'id', id, 'day', day, 'old_cost_usd', old_cost_usd, 'cost_usd', cost_usd,
        'cost_upstream_usd', cost_upstream_usd, 'cost_source', 'provider'
    )), '[]')::text)
    from json_to_recordset(batch::json) as told (
        id uuid, day date, old_cost_usd numeric, cost_usd numeric, cost_upstream_usd numeric
    )
$$;
comment on function taffrail.state_costs(text) is
    'Gives rows of a JSON array the cost that their provider states; returns how many rows changed.';

-- Notes that a provider was asked about rows, a JSON array, and did not tell; forgets those that were
-- not asked about since. Returns how many were noted.
create function taffrail.note_receipt_tries(rows text, forget_before timestamptz) returns bigint
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    with forgotten as (
        delete from taffrail.api_receipt_tries where asked_at < forget_before
    ),
    noted as (
        insert into taffrail.api_receipt_tries (id, tries, asked_at, next_at)
        select id, tries, now(), now() + make_interval(secs => pause_seconds)
        from json_to_recordset(rows::json) as told (id uuid, tries integer, pause_seconds double precision)
        order by id
        on conflict (id) do update set
            tries = excluded.tries, asked_at = excluded.asked_at, next_at = excluded.next_at
        returning 1
    )
    select count(*) from noted
$$;
comment on function taffrail.note_receipt_tries(text, timestamptz) is
    'Notes that providers were asked what rows cost and did not tell; returns how many were noted.';

-- Makes the sums of the days from..to (without the last) anew from their rows, day by day, each
-- exact and beside live writes. Returns how many buckets there are now.
create function taffrail.backfill_usage_aggregates("from" date, "to" date) returns bigint
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
declare
    wanted date;
    made bigint;
    total bigint := 0;
    first_kept date;
begin
    for wanted in select generate_series("from", "to" - 1, interval '1 day')::date loop
        perform pg_advisory_xact_lock(hashtext('taffrail.aggregates'), beside - date '2000-01-01')
        from unnest(array[wanted - 1, wanted, wanted + 1]) as beside;
        -- The rows of a day are in its partition or, where the id was made a moment before or
        -- after midnight, in one beside it. None of them goes while this holds their locks.
        select kept_from into first_kept from taffrail.retention;
        if wanted <= first_kept then
            raise exception 'the rows before % have been dropped; their sums are all that is left of them', first_kept
                using errcode = 'invalid_parameter_value',
                hint = format('start at %s or later', first_kept + 1);
        end if;
        delete from taffrail.api_usage_aggregates
        where granularity in ('hour', 'day')
            and bucket_start >= wanted::timestamp at time zone 'UTC'
            and bucket_start < (wanted + 1)::timestamp at time zone 'UTC';
        insert into taffrail.api_usage_aggregates (
            granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution,
            shard, requests, unpriced_requests, cost_usd, cost_upstream_usd, input_tokens,
            cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
            cache_write_tokens, output_tokens, reasoning_tokens, input_audio_tokens,
            output_audio_tokens, input_image_tokens, output_image_tokens, units
        )
        select
            span.granularity, date_trunc(span.granularity, started_at, 'UTC'),
            coalesce(namespace, ''), provider,
            coalesce(model_served, model_requested, ''), operation,
            taffrail.outcome_class(outcome), attribution, 0::smallint,
            count(*), count(unpriced_reason),
            sum(cost_usd), sum(cost_upstream_usd), sum(input_tokens), sum(cache_read_tokens),
            sum(cache_write_5m_tokens), sum(cache_write_1h_tokens), sum(cache_write_tokens),
            sum(output_tokens), sum(reasoning_tokens), sum(input_audio_tokens),
            sum(output_audio_tokens), sum(input_image_tokens), sum(output_image_tokens),
            taffrail.sum_units(units)
        from taffrail.api_usage_logs
        cross join (values ('hour'), ('day')) as span (granularity)
        where day between wanted - 1 and wanted + 1
            and started_at >= wanted::timestamp at time zone 'UTC'
            and started_at < (wanted + 1)::timestamp at time zone 'UTC'
        group by 1, 2, 3, 4, 5, 6, 7, 8;
        get diagnostics made = row_count;
        total := total + made;
    end loop;
    return total;
end
$$;
comment on function taffrail.backfill_usage_aggregates(date, date) is
    'Makes the sums of days anew from their rows; the second day is not included. Returns how many buckets there are now.';

-- What a program asks first, whatever role it has.
create function taffrail.schema_version() returns bigint
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$ select max(version) from taffrail._sqlx_migrations where success $$;
comment on function taffrail.schema_version() is 'The number of the last migration.';
