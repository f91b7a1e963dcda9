-- Made by the test of this file from the migrations beside it, on Postgres 15; not to be run.

CREATE SCHEMA taffrail;

CREATE TYPE taffrail.incoming_usage AS (
	id uuid,
	day date,
	started_at timestamp with time zone,
	instance text,
	namespace text,
	pod text,
	provider text,
	operation text,
	method text,
	route text,
	model_requested text,
	model_served text,
	upstream_provider text,
	service_tier text,
	streamed boolean,
	job_id text,
	polls bigint,
	provider_request_id text,
	outcome text,
	http_status smallint,
	error_code text,
	error_message text,
	finish_reason text,
	duration_us bigint,
	first_byte_us bigint,
	first_token_us bigint,
	overhead_us bigint,
	queue_us bigint,
	run_us bigint,
	request_bytes bigint,
	response_bytes bigint,
	input_tokens bigint,
	cache_read_tokens bigint,
	cache_write_5m_tokens bigint,
	cache_write_1h_tokens bigint,
	cache_write_tokens bigint,
	output_tokens bigint,
	reasoning_tokens bigint,
	input_audio_tokens bigint,
	output_audio_tokens bigint,
	input_image_tokens bigint,
	output_image_tokens bigint,
	units jsonb,
	fidelity text,
	raw_usage text,
	cost_usd numeric,
	cost_upstream_usd numeric,
	cost_source text,
	price_version text,
	unpriced_reason text,
	recosted_at timestamp with time zone,
	key_fingerprint text,
	attribution jsonb,
	trace_id text,
	span_id text
);

COMMENT ON TYPE taffrail.incoming_usage IS 'A row of api_usage_logs on its way in: raw_usage is still text.';

CREATE FUNCTION taffrail.account_signals(lasting interval) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.account_signals(lasting interval) IS 'What traffic shows of accounts: refusals for want of money, of locked accounts and of too many requests.';

CREATE FUNCTION taffrail.add_price_version(name text, list text, effective timestamp with time zone, changes text, since bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.add_price_version(name text, list text, effective timestamp with time zone, changes text, since bigint) IS 'Adds a version of a source''s price list, unless somebody else did so first; returns its number.';

CREATE FUNCTION taffrail.add_units(a jsonb, b jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.add_units(a jsonb, b jsonb) IS 'The sum of two sets of quantities by unit.';

CREATE FUNCTION taffrail.backfill_usage_aggregates("from" date, "to" date) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.backfill_usage_aggregates("from" date, "to" date) IS 'Makes the sums of days anew from their rows; the second day is not included. Returns how many buckets there are now.';

CREATE FUNCTION taffrail.days_ahead_max() RETURNS integer
    LANGUAGE sql IMMUTABLE
    AS $$ select 400 $$;

COMMENT ON FUNCTION taffrail.days_ahead_max() IS 'How many days from now on rows are taken for.';

CREATE FUNCTION taffrail.drop_aggregates(before date, rows_max integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
    with dropped as (
        delete from taffrail.api_usage_aggregates
        where ctid = any (array(
            select ctid from taffrail.api_usage_aggregates
            where granularity in ('hour', 'day') and bucket_start < before::timestamp at time zone 'UTC'
            limit rows_max
        ))
        returning 1
    )
    select count(*) from dropped
$$;

COMMENT ON FUNCTION taffrail.drop_aggregates(before date, rows_max integer) IS 'Removes sums before a day, some at a time; returns how many.';

CREATE FUNCTION taffrail.drop_balances(before date, rows_max integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.drop_balances(before date, rows_max integer) IS 'Drops readings of balances of before a day, some at a time; returns how many.';

CREATE FUNCTION taffrail.drop_jobs(before date, rows_max integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.drop_jobs(before date, rows_max integer) IS 'Forgets jobs that got their row before a day, some at a time; returns how many.';

CREATE FUNCTION taffrail.drop_oldest_partition(before date) RETURNS date
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    SET lock_timeout TO '200ms'
    SET client_min_messages TO 'warning'
    AS $$
declare
    oldest date;
begin
    select min(to_date(right(child.relname, 8), 'YYYYMMDD')) into oldest
    from pg_inherits
    join pg_class as child on child.oid = inhrelid
    where inhparent = 'taffrail.api_usage_logs'::regclass;
    if oldest is null or oldest >= before then
        return null;
    end if;
    -- Rows that arrive for the day, a rebuild of its sums and another who drops it take turns with
    -- this: none of them sees the day half gone.
    perform pg_advisory_xact_lock(hashtext('taffrail.aggregates'), oldest - date '2000-01-01');
    execute format('drop table if exists taffrail.%I', 'api_usage_logs_' || to_char(oldest, 'YYYYMMDD'));
    insert into taffrail.retention (kept_from) values (oldest + 1)
    on conflict ((true)) do update set
        kept_from = greatest(retention.kept_from, excluded.kept_from),
        changed_at = now();
    return oldest;
end
$$;

COMMENT ON FUNCTION taffrail.drop_oldest_partition(before date) IS 'Drops the oldest partition before a day and returns its day, or null. Fails with 55P03 while somebody reads; try again later.';

CREATE FUNCTION taffrail.ensure_partition(wanted date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    SET client_min_messages TO 'warning'
    AS $$
declare
    partition text := 'api_usage_logs_' || to_char(wanted, 'YYYYMMDD');
    transactions_ago int;
begin
    select age(xmin) into transactions_ago from pg_class
    where relnamespace = 'taffrail'::regnamespace and relname = partition;
    if found then
        -- A commit is seen a moment before other sessions are told to look at partitions anew, and
        -- a row that comes in between finds none. Whoever made it holds this lock until then.
        if transactions_ago < 10000 then
            perform pg_advisory_lock_shared(hashtext('taffrail.partitions'));
            perform pg_advisory_unlock_shared(hashtext('taffrail.partitions'));
        end if;
        return;
    end if;
    if wanted < (select kept_from from taffrail.retention) then
        raise exception 'the day % has been dropped by retention', wanted
            using errcode = 'invalid_parameter_value';
    end if;
    if wanted > current_date + taffrail.days_ahead_max() then
        raise exception 'the day % is more than % days ahead of the database''s clock', wanted, taffrail.days_ahead_max()
            using errcode = 'invalid_parameter_value';
    end if;
    perform pg_advisory_xact_lock(hashtext('taffrail.partitions'));
    if taffrail.has_partition(wanted) then
        return;
    end if;
    execute format('create table taffrail.%I (like taffrail.api_usage_logs including defaults)', partition);
    execute format(
        'alter table taffrail.api_usage_logs attach partition taffrail.%I for values from (%L) to (%L)',
        partition, wanted, wanted + 1
    );
end
$$;

COMMENT ON FUNCTION taffrail.ensure_partition(wanted date) IS 'Makes the partition of a day, if it is missing; refuses days that retention dropped and days too far ahead.';

CREATE FUNCTION taffrail.exchange_jobs(batch text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.exchange_jobs(batch text) IS 'Takes in the halves of jobs that a process knows, and returns what others know of the jobs that it names.';

CREATE FUNCTION taffrail.has_partition(wanted date) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return exists (
        select from pg_class
        where relnamespace = 'taffrail'::regnamespace
            and relname = 'api_usage_logs_' || to_char(wanted, 'YYYYMMDD')
    );
end
$$;

COMMENT ON FUNCTION taffrail.has_partition(wanted date) IS 'Whether a day has its partition.';

CREATE FUNCTION taffrail.is_scoped() RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$ select exists (select from taffrail.reader_scopes where reader = session_user) $$;

COMMENT ON FUNCTION taffrail.is_scoped() IS 'Whether the login that asks has scopes.';

CREATE FUNCTION taffrail.may_read(row_namespace text, row_attribution jsonb) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
    select exists (
        select from taffrail.reader_scopes
        where reader = session_user
            and (namespace is null or namespace = row_namespace)
            and (team is null or team = row_attribution ->> 'team')
    )
$$;

COMMENT ON FUNCTION taffrail.may_read(row_namespace text, row_attribution jsonb) IS 'Whether a scope of the login that asks allows a row.';

CREATE FUNCTION taffrail.metered_spend(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.metered_spend(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone) IS 'What requests to a provider cost within a window, by fingerprint of the key.';

CREATE FUNCTION taffrail.note_price_refresh(list text, changes text, reason text) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
    insert into taffrail.price_refreshes (source, checked_at, held_back, held_back_reason)
    values (list, now(), changes::json, reason)
    on conflict (source) do update set
        checked_at = excluded.checked_at,
        held_back = excluded.held_back,
        held_back_reason = excluded.held_back_reason
    returning true
$$;

COMMENT ON FUNCTION taffrail.note_price_refresh(list text, changes text, reason text) IS 'Notes that a source of prices was read in full, and what of it is held back.';

CREATE FUNCTION taffrail.note_receipt_tries(rows text, forget_before timestamp with time zone) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.note_receipt_tries(rows text, forget_before timestamp with time zone) IS 'Notes that providers were asked what rows cost and did not tell; returns how many were noted.';

CREATE FUNCTION taffrail.outcome_class(outcome text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case outcome
        when 'ok' then 'ok'
        when 'content_filtered' then 'ok'
        when 'client_cancelled' then 'cancelled'
        else 'error'
    end
$$;

COMMENT ON FUNCTION taffrail.outcome_class(outcome text) IS 'The class of an outcome: ok, error or cancelled.';

CREATE FUNCTION taffrail.overdue_jobs(grace interval, rows_max integer) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.overdue_jobs(grace interval, rows_max integer) IS 'The halves of jobs that have no row and wait in vain for the other half or an end.';

CREATE FUNCTION taffrail.price_versions_after(known bigint, rows_max integer) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
    select coalesce(json_agg(json_build_object(
        'number', number, 'version', version, 'source', source,
        'effective_from', effective_from, 'catalogue', catalogue::text
    ) order by number), '[]')::text
    from (
        select * from taffrail.price_versions where number > known order by number limit rows_max
    ) as later
$$;

COMMENT ON FUNCTION taffrail.price_versions_after(known bigint, rows_max integer) IS 'The versions of price lists after a number, as JSON.';

CREATE FUNCTION taffrail.record_balance(reading text) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.record_balance(reading text) IS 'Takes in a reading of an account, once for its slot; returns whether it was taken.';

CREATE FUNCTION taffrail.record_reconciliations(rows text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.record_reconciliations(rows text) IS 'Takes in bills against what was metered, one for each account and day; returns how many were taken.';

CREATE FUNCTION taffrail.record_usage(batch text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.record_usage(batch text) IS 'Inserts the rows of a JSON array whose id is new, adds exactly those to the sums, and returns how many they were.';

CREATE FUNCTION taffrail.recost_usage(batch text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.recost_usage(batch text) IS 'Gives rows of a JSON array another cost, moves the sums along and keeps what was; returns how many rows changed.';

CREATE FUNCTION taffrail.schema_version() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$ select max(version) from taffrail._sqlx_migrations where success $$;

COMMENT ON FUNCTION taffrail.schema_version() IS 'The number of the last migration.';

CREATE PROCEDURE taffrail.set_up_roles()
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET client_min_messages TO 'warning'
    AS $$
declare
    wanted text;
begin
    foreach wanted in array array['taffrail_ingest', 'taffrail_balance', 'taffrail_reader'] loop
        begin
            if to_regrole(wanted) is null then
                execute format('create role %I nologin', wanted);
            end if;
        exception
            when duplicate_object or unique_violation then null;
            when insufficient_privilege then
                raise warning 'may not create the role %: have it created and call taffrail.set_up_roles() again', wanted;
        end;
    end loop;

    -- Nobody else.
    revoke all on schema taffrail from public;
    revoke all on all tables in schema taffrail from public;
    revoke all on all functions in schema taffrail from public;
    revoke all on all procedures in schema taffrail from public;

    if to_regrole('taffrail_ingest') is not null then
        grant usage on schema taffrail to taffrail_ingest;
        grant execute on function
            taffrail.schema_version(),
            taffrail.record_usage(text),
            taffrail.exchange_jobs(text),
            taffrail.price_versions_after(bigint, integer)
        to taffrail_ingest;
    end if;
    if to_regrole('taffrail_balance') is not null then
        grant usage on schema taffrail to taffrail_balance;
        grant execute on function
            taffrail.schema_version(),
            taffrail.ensure_partition(date),
            taffrail.drop_oldest_partition(date),
            taffrail.drop_aggregates(date, integer),
            taffrail.record_usage(text),
            taffrail.overdue_jobs(interval, integer),
            taffrail.drop_jobs(date, integer),
            taffrail.record_balance(text),
            taffrail.drop_balances(date, integer),
            taffrail.take_lease(text, text, interval),
            taffrail.account_signals(interval),
            taffrail.metered_spend(text, timestamptz, timestamptz),
            taffrail.record_reconciliations(text),
            taffrail.uncertain_costs(text, timestamptz, timestamptz, text[], integer, integer),
            taffrail.state_costs(text),
            taffrail.note_receipt_tries(text, timestamptz),
            taffrail.price_versions_after(bigint, integer),
            taffrail.add_price_version(text, text, timestamptz, text, bigint),
            taffrail.note_price_refresh(text, text, text),
            taffrail.is_scoped(),
            taffrail.may_read(text, jsonb),
            taffrail.sum_units(jsonb),
            taffrail.add_units(jsonb, jsonb)
        to taffrail_balance;
        grant select on
            taffrail.api_provider_balances,
            taffrail.api_reconciliations,
            taffrail.price_versions,
            taffrail.price_refreshes
        to taffrail_balance;
        grant select on taffrail.api_usage_aggregates, taffrail.api_usage_buckets to taffrail_balance;
    end if;
    if to_regrole('taffrail_reader') is not null then
        grant usage on schema taffrail to taffrail_reader;
        grant execute on function
            taffrail.schema_version(),
            taffrail.price_versions_after(bigint, integer),
            taffrail.is_scoped(),
            taffrail.may_read(text, jsonb),
            taffrail.sum_units(jsonb),
            taffrail.add_units(jsonb, jsonb)
        to taffrail_reader;
        grant select on
            taffrail.api_usage_logs,
            taffrail.api_usage_aggregates,
            taffrail.api_usage_buckets,
            taffrail.api_provider_balances,
            taffrail.api_cost_changes,
            taffrail.api_reconciliations,
            taffrail.price_versions,
            taffrail.price_refreshes
        to taffrail_reader;
    end if;
end
$$;

COMMENT ON PROCEDURE taffrail.set_up_roles() IS 'Makes the roles that are missing and gives each its rights; may be called again.';

CREATE FUNCTION taffrail.state_costs(batch text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
    select taffrail.recost_usage(coalesce(json_agg(json_build_object(
        'id', id, 'day', day, 'old_cost_usd', old_cost_usd, 'cost_usd', cost_usd,
        'cost_upstream_usd', cost_upstream_usd, 'cost_source', 'provider'
    )), '[]')::text)
    from json_to_recordset(batch::json) as told (
        id uuid, day date, old_cost_usd numeric, cost_usd numeric, cost_upstream_usd numeric
    )
$$;

COMMENT ON FUNCTION taffrail.state_costs(batch text) IS 'Gives rows of a JSON array the cost that their provider states; returns how many rows changed.';

CREATE FUNCTION taffrail.take_lease(wanted text, by_holder text, lasting interval) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
    with taken as (
        insert into taffrail.leases as known (name, holder, expires_at)
        values (wanted, by_holder, now() + lasting)
        on conflict (name) do update set holder = excluded.holder, expires_at = excluded.expires_at
        where known.holder = excluded.holder or known.expires_at <= now()
        returning 1
    )
    select exists (select from taken)
$$;

COMMENT ON FUNCTION taffrail.take_lease(wanted text, by_holder text, lasting interval) IS 'Takes or keeps a lease; returns whether the holder has it now.';

CREATE FUNCTION taffrail.uncertain_costs(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone, of_keys text[], tries_max integer, rows_max integer) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.uncertain_costs(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone, of_keys text[], tries_max integer, rows_max integer) IS 'Rows whose cost is unknown or an estimate and that their provider may know, as a JSON array.';

CREATE TABLE taffrail.api_usage_aggregates (
    granularity text NOT NULL COLLATE pg_catalog."C",
    bucket_start timestamp with time zone NOT NULL,
    namespace text NOT NULL COLLATE pg_catalog."C",
    provider text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    operation text NOT NULL COLLATE pg_catalog."C",
    outcome_class text NOT NULL COLLATE pg_catalog."C",
    attribution jsonb NOT NULL,
    shard smallint NOT NULL,
    requests bigint NOT NULL,
    unpriced_requests bigint NOT NULL,
    cost_usd numeric,
    cost_upstream_usd numeric,
    input_tokens numeric,
    cache_read_tokens numeric,
    cache_write_5m_tokens numeric,
    cache_write_1h_tokens numeric,
    cache_write_tokens numeric,
    output_tokens numeric,
    reasoning_tokens numeric,
    input_audio_tokens numeric,
    output_audio_tokens numeric,
    input_image_tokens numeric,
    output_image_tokens numeric,
    units jsonb,
    CONSTRAINT api_usage_aggregates_granularity_check CHECK ((granularity = ANY (ARRAY['hour'::text, 'day'::text]))),
    CONSTRAINT cost_upstream_usd_is_finite CHECK (((cost_upstream_usd > '-Infinity'::numeric) AND (cost_upstream_usd < 'Infinity'::numeric))),
    CONSTRAINT cost_usd_is_finite CHECK (((cost_usd > '-Infinity'::numeric) AND (cost_usd < 'Infinity'::numeric))),
    CONSTRAINT units_are_finite CHECK ((NOT (units @? '$.*?((@ == "NaN" || @ == "Infinity") || @ == "-Infinity")'::jsonpath)))
)
WITH (fillfactor='70');

ALTER TABLE ONLY taffrail.api_usage_aggregates FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.api_usage_aggregates IS 'Sums of the rows of an hour or a day, by namespace, provider, model, operation, outcome class and attribution, spread over shards: sum over them, or read api_usage_buckets. A quantity is null where no row knew it.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.granularity IS 'hour or day.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.bucket_start IS 'The start of the hour or day, in UTC.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.namespace IS 'As in api_usage_logs, else the empty text.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.provider IS 'As in api_usage_logs.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.model IS 'The served model, else the requested one, else the empty text.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.operation IS 'As in api_usage_logs.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.outcome_class IS 'ok, error or cancelled.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.attribution IS 'As in api_usage_logs.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.shard IS 'Spreads writers; it has no meaning.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.requests IS 'How many rows.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.unpriced_requests IS 'How many of them have an unpriced_reason.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.cost_usd IS 'The sum of the known costs.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.cost_upstream_usd IS 'The sum of what another party bills.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.input_tokens IS 'The sum of what was known; so are the other tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.cache_read_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.cache_write_5m_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.cache_write_1h_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.cache_write_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.output_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.reasoning_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.input_audio_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.output_audio_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.input_image_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.output_image_tokens IS 'See input_tokens.';

COMMENT ON COLUMN taffrail.api_usage_aggregates.units IS 'The sums of the other quantities, by unit. Decimals as strings.';

CREATE FUNCTION taffrail.upsert_usage_aggregate(VARIADIC buckets taffrail.api_usage_aggregates[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'taffrail', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION taffrail.upsert_usage_aggregate(VARIADIC buckets taffrail.api_usage_aggregates[]) IS 'Adds to buckets, each atomically and in the order of the key. The buckets must differ in their keys.';

CREATE AGGREGATE taffrail.sum_units(jsonb) (
    SFUNC = taffrail.add_units,
    STYPE = jsonb,
    COMBINEFUNC = taffrail.add_units,
    PARALLEL = safe
);

COMMENT ON AGGREGATE taffrail.sum_units(jsonb) IS 'The sum of sets of quantities by unit; null where none is known.';

CREATE TABLE taffrail.api_cost_changes (
    id uuid NOT NULL,
    day date NOT NULL,
    changed_at timestamp with time zone NOT NULL,
    old_cost_usd numeric,
    old_cost_source text,
    old_price_version text,
    old_unpriced_reason text,
    new_cost_usd numeric NOT NULL,
    new_cost_source text NOT NULL,
    new_price_version text
);

ALTER TABLE ONLY taffrail.api_cost_changes FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.api_cost_changes IS 'The old and the new cost of each row whose cost was computed anew.';

COMMENT ON COLUMN taffrail.api_cost_changes.id IS 'The row in api_usage_logs.';

COMMENT ON COLUMN taffrail.api_cost_changes.day IS 'Its day.';

COMMENT ON COLUMN taffrail.api_cost_changes.changed_at IS 'When its cost changed.';

COMMENT ON COLUMN taffrail.api_cost_changes.old_cost_usd IS 'The cost before; null was unknown.';

COMMENT ON COLUMN taffrail.api_cost_changes.old_cost_source IS 'Its source before.';

COMMENT ON COLUMN taffrail.api_cost_changes.old_price_version IS 'The version that it was priced with before.';

COMMENT ON COLUMN taffrail.api_cost_changes.old_unpriced_reason IS 'Why the cost was unknown before.';

COMMENT ON COLUMN taffrail.api_cost_changes.new_cost_usd IS 'The cost since.';

COMMENT ON COLUMN taffrail.api_cost_changes.new_cost_source IS 'Its source since.';

COMMENT ON COLUMN taffrail.api_cost_changes.new_price_version IS 'The version that it is priced with since; null is the provider''s own word.';

CREATE TABLE taffrail.api_jobs (
    provider text NOT NULL,
    job_id text NOT NULL,
    id uuid NOT NULL,
    submitted_at timestamp with time zone,
    deadline_at timestamp with time zone,
    ended_at timestamp with time zone,
    is_settled boolean DEFAULT false NOT NULL,
    submit_half json,
    end_half json,
    recorded_at timestamp with time zone,
    updated_at timestamp with time zone NOT NULL
);

ALTER TABLE ONLY taffrail.api_jobs FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.api_jobs IS 'Asynchronous jobs: what is known of the open ones, and which have their row.';

COMMENT ON COLUMN taffrail.api_jobs.provider IS 'The provider''s name.';

COMMENT ON COLUMN taffrail.api_jobs.job_id IS 'The provider''s id of the job.';

COMMENT ON COLUMN taffrail.api_jobs.id IS 'The id of the job''s row in api_usage_logs.';

COMMENT ON COLUMN taffrail.api_jobs.submitted_at IS 'When it was submitted.';

COMMENT ON COLUMN taffrail.api_jobs.deadline_at IS 'When the process that submitted it gives it up.';

COMMENT ON COLUMN taffrail.api_jobs.ended_at IS 'When it was first seen to have ended.';

COMMENT ON COLUMN taffrail.api_jobs.is_settled IS 'Whether the half of its end is all that will be told of it.';

COMMENT ON COLUMN taffrail.api_jobs.submit_half IS 'What the process that submitted it knows.';

COMMENT ON COLUMN taffrail.api_jobs.end_half IS 'What the process that saw its end knows.';

COMMENT ON COLUMN taffrail.api_jobs.recorded_at IS 'When its row was made; null while the job is open.';

COMMENT ON COLUMN taffrail.api_jobs.updated_at IS 'When a half, or the row, last arrived.';

CREATE TABLE taffrail.api_provider_balances (
    provider text NOT NULL,
    account text NOT NULL,
    slot timestamp with time zone NOT NULL,
    part smallint DEFAULT 0 NOT NULL,
    read_at timestamp with time zone NOT NULL,
    result text NOT NULL,
    kind text,
    currency text,
    balance numeric,
    detail text,
    raw json
);

ALTER TABLE ONLY taffrail.api_provider_balances FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.api_provider_balances IS 'One row per account, reading and currency. A failed reading has a result and no balance.';

COMMENT ON COLUMN taffrail.api_provider_balances.provider IS 'The provider''s name.';

COMMENT ON COLUMN taffrail.api_provider_balances.account IS 'The account''s name in the configuration.';

COMMENT ON COLUMN taffrail.api_provider_balances.slot IS 'The scheduled time of the reading; its own time if it was asked for.';

COMMENT ON COLUMN taffrail.api_provider_balances.part IS 'Which currency of the reading, from 0.';

COMMENT ON COLUMN taffrail.api_provider_balances.read_at IS 'When it was read.';

COMMENT ON COLUMN taffrail.api_provider_balances.result IS 'ok, auth, unsupported, rate_limited, timeout or error.';

COMMENT ON COLUMN taffrail.api_provider_balances.kind IS 'prepaid, key_limit or ledger; null if there was no answer.';

COMMENT ON COLUMN taffrail.api_provider_balances.currency IS 'The provider''s own currency or unit.';

COMMENT ON COLUMN taffrail.api_provider_balances.balance IS 'In that currency; null is unknown or without limit.';

COMMENT ON COLUMN taffrail.api_provider_balances.detail IS 'What went wrong, in a line.';

COMMENT ON COLUMN taffrail.api_provider_balances.raw IS 'The provider''s answer, without anything that could be a key.';

CREATE TABLE taffrail.api_receipt_tries (
    id uuid NOT NULL,
    tries integer NOT NULL,
    asked_at timestamp with time zone NOT NULL,
    next_at timestamp with time zone NOT NULL
);

ALTER TABLE ONLY taffrail.api_receipt_tries FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.api_receipt_tries IS 'Rows whose provider was asked what they cost and has not told.';

COMMENT ON COLUMN taffrail.api_receipt_tries.id IS 'The row in api_usage_logs.';

COMMENT ON COLUMN taffrail.api_receipt_tries.tries IS 'How often it was asked about.';

COMMENT ON COLUMN taffrail.api_receipt_tries.asked_at IS 'When it was last asked about.';

COMMENT ON COLUMN taffrail.api_receipt_tries.next_at IS 'When it may be asked about again.';

CREATE TABLE taffrail.api_reconciliations (
    provider text NOT NULL,
    account text NOT NULL,
    day date NOT NULL,
    window_start timestamp with time zone NOT NULL,
    window_end timestamp with time zone NOT NULL,
    read_at timestamp with time zone NOT NULL,
    result text NOT NULL,
    source text,
    provider_spend_usd numeric,
    metered_usd numeric,
    unmetered_usd numeric,
    upstream_usd numeric,
    requests bigint,
    unpriced_requests bigint,
    metered_keys integer,
    unclaimed_keys integer,
    detail text
);

ALTER TABLE ONLY taffrail.api_reconciliations FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.api_reconciliations IS 'One row per account and UTC day: the provider''s bill against what was metered.';

COMMENT ON COLUMN taffrail.api_reconciliations.provider IS 'The provider''s name.';

COMMENT ON COLUMN taffrail.api_reconciliations.account IS 'The account''s name in the configuration.';

COMMENT ON COLUMN taffrail.api_reconciliations.day IS 'The UTC day.';

COMMENT ON COLUMN taffrail.api_reconciliations.window_start IS 'From when the bill counts: midnight, or the balance reading next to it.';

COMMENT ON COLUMN taffrail.api_reconciliations.window_end IS 'To when the bill counts.';

COMMENT ON COLUMN taffrail.api_reconciliations.read_at IS 'When the bill was read.';

COMMENT ON COLUMN taffrail.api_reconciliations.result IS 'ok, auth, unsupported, rate_limited, timeout or error.';

COMMENT ON COLUMN taffrail.api_reconciliations.source IS 'Where the bill is from: the vendor''s name of its API, or balance.';

COMMENT ON COLUMN taffrail.api_reconciliations.provider_spend_usd IS 'What the provider says was spent, in US dollars; null is unknown.';

COMMENT ON COLUMN taffrail.api_reconciliations.metered_usd IS 'What the requests that were seen cost, without what another party bills; null is unknown.';

COMMENT ON COLUMN taffrail.api_reconciliations.unmetered_usd IS 'The bill less what was metered; negative if more was metered than billed.';

COMMENT ON COLUMN taffrail.api_reconciliations.upstream_usd IS 'What another party bills for the requests that were seen; no part of the others.';

COMMENT ON COLUMN taffrail.api_reconciliations.requests IS 'How many requests were seen.';

COMMENT ON COLUMN taffrail.api_reconciliations.unpriced_requests IS 'How many of them cost something unknown, and so are missing from metered_usd.';

COMMENT ON COLUMN taffrail.api_reconciliations.metered_keys IS 'How many keys made these requests.';

COMMENT ON COLUMN taffrail.api_reconciliations.unclaimed_keys IS 'How many further keys made requests to the provider that no account claims.';

COMMENT ON COLUMN taffrail.api_reconciliations.detail IS 'What is to be said of it, in a line; why it failed if it did.';

CREATE VIEW taffrail.api_usage_buckets WITH (security_invoker='true') AS
 SELECT api_usage_aggregates.granularity,
    api_usage_aggregates.bucket_start,
    api_usage_aggregates.namespace,
    api_usage_aggregates.provider,
    api_usage_aggregates.model,
    api_usage_aggregates.operation,
    api_usage_aggregates.outcome_class,
    api_usage_aggregates.attribution,
    (sum(api_usage_aggregates.requests))::bigint AS requests,
    (sum(api_usage_aggregates.unpriced_requests))::bigint AS unpriced_requests,
    sum(api_usage_aggregates.cost_usd) AS cost_usd,
    sum(api_usage_aggregates.cost_upstream_usd) AS cost_upstream_usd,
    sum(api_usage_aggregates.input_tokens) AS input_tokens,
    sum(api_usage_aggregates.cache_read_tokens) AS cache_read_tokens,
    sum(api_usage_aggregates.cache_write_5m_tokens) AS cache_write_5m_tokens,
    sum(api_usage_aggregates.cache_write_1h_tokens) AS cache_write_1h_tokens,
    sum(api_usage_aggregates.cache_write_tokens) AS cache_write_tokens,
    sum(api_usage_aggregates.output_tokens) AS output_tokens,
    sum(api_usage_aggregates.reasoning_tokens) AS reasoning_tokens,
    sum(api_usage_aggregates.input_audio_tokens) AS input_audio_tokens,
    sum(api_usage_aggregates.output_audio_tokens) AS output_audio_tokens,
    sum(api_usage_aggregates.input_image_tokens) AS input_image_tokens,
    sum(api_usage_aggregates.output_image_tokens) AS output_image_tokens,
    taffrail.sum_units(api_usage_aggregates.units) AS units
   FROM taffrail.api_usage_aggregates
  GROUP BY api_usage_aggregates.granularity, api_usage_aggregates.bucket_start, api_usage_aggregates.namespace, api_usage_aggregates.provider, api_usage_aggregates.model, api_usage_aggregates.operation, api_usage_aggregates.outcome_class, api_usage_aggregates.attribution;

COMMENT ON VIEW taffrail.api_usage_buckets IS 'api_usage_aggregates with its shards summed: one row per bucket.';

CREATE TABLE taffrail.api_usage_logs (
    id uuid NOT NULL,
    day date NOT NULL,
    started_at timestamp with time zone NOT NULL,
    instance text NOT NULL,
    namespace text,
    pod text,
    provider text NOT NULL,
    operation text NOT NULL,
    method text NOT NULL,
    route text NOT NULL,
    model_requested text,
    model_served text,
    upstream_provider text,
    service_tier text,
    streamed boolean NOT NULL,
    job_id text,
    polls bigint,
    provider_request_id text,
    outcome text NOT NULL,
    http_status smallint,
    error_code text,
    error_message text,
    finish_reason text,
    duration_us bigint,
    first_byte_us bigint,
    first_token_us bigint,
    overhead_us bigint,
    queue_us bigint,
    run_us bigint,
    request_bytes bigint,
    response_bytes bigint,
    input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_5m_tokens bigint,
    cache_write_1h_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    input_audio_tokens bigint,
    output_audio_tokens bigint,
    input_image_tokens bigint,
    output_image_tokens bigint,
    units jsonb,
    fidelity text NOT NULL,
    raw_usage json,
    cost_usd numeric,
    cost_upstream_usd numeric,
    cost_source text,
    price_version text,
    unpriced_reason text,
    recosted_at timestamp with time zone,
    key_fingerprint text,
    attribution jsonb DEFAULT '{}'::jsonb NOT NULL,
    trace_id text,
    span_id text
)
PARTITION BY RANGE (day);

ALTER TABLE ONLY taffrail.api_usage_logs FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.api_usage_logs IS 'One row per request or job that can cost money, inserted once by record_usage() and changed only by re-costing and receipts. Null is unknown, never zero.';

COMMENT ON COLUMN taffrail.api_usage_logs.id IS 'UUIDv7, made when the request started; derived from provider and job id for jobs.';

COMMENT ON COLUMN taffrail.api_usage_logs.day IS 'The UTC day that the id names: the partition that the row was born into, whatever clocks say later.';

COMMENT ON COLUMN taffrail.api_usage_logs.started_at IS 'When the request reached the sidecar, by the sidecar''s clock.';

COMMENT ON COLUMN taffrail.api_usage_logs.instance IS 'The process that metered it: the pod''s name, else the host''s.';

COMMENT ON COLUMN taffrail.api_usage_logs.namespace IS 'The Kubernetes namespace of the pod.';

COMMENT ON COLUMN taffrail.api_usage_logs.pod IS 'The name of the pod.';

COMMENT ON COLUMN taffrail.api_usage_logs.provider IS 'The provider''s name, as in the route.';

COMMENT ON COLUMN taffrail.api_usage_logs.operation IS 'What was asked: chat, embeddings, image and so on.';

COMMENT ON COLUMN taffrail.api_usage_logs.method IS 'The HTTP method.';

COMMENT ON COLUMN taffrail.api_usage_logs.route IS 'The path with its ids replaced; never a query.';

COMMENT ON COLUMN taffrail.api_usage_logs.model_requested IS 'The model that the request named.';

COMMENT ON COLUMN taffrail.api_usage_logs.model_served IS 'The model that the response named.';

COMMENT ON COLUMN taffrail.api_usage_logs.upstream_provider IS 'Whom a router passed the request to.';

COMMENT ON COLUMN taffrail.api_usage_logs.service_tier IS 'The tier that was billed.';

COMMENT ON COLUMN taffrail.api_usage_logs.streamed IS 'Whether the response was a stream of events.';

COMMENT ON COLUMN taffrail.api_usage_logs.job_id IS 'The provider''s id of an asynchronous job.';

COMMENT ON COLUMN taffrail.api_usage_logs.polls IS 'How often the job was asked for until its end.';

COMMENT ON COLUMN taffrail.api_usage_logs.provider_request_id IS 'The provider''s id of the request or response.';

COMMENT ON COLUMN taffrail.api_usage_logs.outcome IS 'How it ended: ok, rate_limited, upstream_error and so on.';

COMMENT ON COLUMN taffrail.api_usage_logs.http_status IS 'The status that the provider answered with.';

COMMENT ON COLUMN taffrail.api_usage_logs.error_code IS 'The provider''s own code of an error.';

COMMENT ON COLUMN taffrail.api_usage_logs.error_message IS 'The provider''s message, scrubbed of secrets, at most 256 characters.';

COMMENT ON COLUMN taffrail.api_usage_logs.finish_reason IS 'Why generation ended, in the provider''s own word.';

COMMENT ON COLUMN taffrail.api_usage_logs.duration_us IS 'From the request''s head to the response''s last byte, in microseconds.';

COMMENT ON COLUMN taffrail.api_usage_logs.first_byte_us IS 'To the first byte of the response, in microseconds.';

COMMENT ON COLUMN taffrail.api_usage_logs.first_token_us IS 'To the first generated token, in microseconds.';

COMMENT ON COLUMN taffrail.api_usage_logs.overhead_us IS 'What the sidecar itself took, in microseconds.';

COMMENT ON COLUMN taffrail.api_usage_logs.queue_us IS 'How long a job waited, in microseconds.';

COMMENT ON COLUMN taffrail.api_usage_logs.run_us IS 'How long a job ran, in microseconds.';

COMMENT ON COLUMN taffrail.api_usage_logs.request_bytes IS 'Bytes of the request''s body.';

COMMENT ON COLUMN taffrail.api_usage_logs.response_bytes IS 'Bytes of the response''s body.';

COMMENT ON COLUMN taffrail.api_usage_logs.input_tokens IS 'Input tokens that no cache served. All quantities of tokens are disjoint.';

COMMENT ON COLUMN taffrail.api_usage_logs.cache_read_tokens IS 'Input tokens read from a cache.';

COMMENT ON COLUMN taffrail.api_usage_logs.cache_write_5m_tokens IS 'Input tokens written to a cache for five minutes.';

COMMENT ON COLUMN taffrail.api_usage_logs.cache_write_1h_tokens IS 'Input tokens written to a cache for an hour.';

COMMENT ON COLUMN taffrail.api_usage_logs.cache_write_tokens IS 'Input tokens written to a cache for another or unstated time.';

COMMENT ON COLUMN taffrail.api_usage_logs.output_tokens IS 'Output tokens without reasoning.';

COMMENT ON COLUMN taffrail.api_usage_logs.reasoning_tokens IS 'Output tokens of reasoning.';

COMMENT ON COLUMN taffrail.api_usage_logs.input_audio_tokens IS 'Input tokens of audio.';

COMMENT ON COLUMN taffrail.api_usage_logs.output_audio_tokens IS 'Output tokens of audio.';

COMMENT ON COLUMN taffrail.api_usage_logs.input_image_tokens IS 'Input tokens of images.';

COMMENT ON COLUMN taffrail.api_usage_logs.output_image_tokens IS 'Output tokens of images.';

COMMENT ON COLUMN taffrail.api_usage_logs.units IS 'The other quantities, by unit: images, seconds, searches. Decimals as strings.';

COMMENT ON COLUMN taffrail.api_usage_logs.fidelity IS 'How far the usage can be trusted: complete, partial, silent and so on.';

COMMENT ON COLUMN taffrail.api_usage_logs.raw_usage IS 'The provider''s own usage object, verbatim.';

COMMENT ON COLUMN taffrail.api_usage_logs.cost_usd IS 'What it cost all parties together, in US dollars; null is unknown.';

COMMENT ON COLUMN taffrail.api_usage_logs.cost_upstream_usd IS 'The part of cost_usd that another party bills.';

COMMENT ON COLUMN taffrail.api_usage_logs.cost_source IS 'Where the cost comes from: provider, catalog or estimated.';

COMMENT ON COLUMN taffrail.api_usage_logs.price_version IS 'The version of the price book that priced it.';

COMMENT ON COLUMN taffrail.api_usage_logs.unpriced_reason IS 'Why the cost is unknown.';

COMMENT ON COLUMN taffrail.api_usage_logs.recosted_at IS 'When the cost was last computed anew.';

COMMENT ON COLUMN taffrail.api_usage_logs.key_fingerprint IS 'A keyed hash of the API key; the key itself is nowhere.';

COMMENT ON COLUMN taffrail.api_usage_logs.attribution IS 'Attribution labels and their values.';

COMMENT ON COLUMN taffrail.api_usage_logs.trace_id IS 'From the request''s traceparent.';

COMMENT ON COLUMN taffrail.api_usage_logs.span_id IS 'From the request''s traceparent.';

CREATE TABLE taffrail.leases (
    name text NOT NULL,
    holder text NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

COMMENT ON TABLE taffrail.leases IS 'Who does alone what is to be done once for a fleet, and until when.';

COMMENT ON COLUMN taffrail.leases.name IS 'What is done.';

COMMENT ON COLUMN taffrail.leases.holder IS 'The process that does it.';

COMMENT ON COLUMN taffrail.leases.expires_at IS 'When another one may take it.';

CREATE TABLE taffrail.price_refreshes (
    source text NOT NULL,
    checked_at timestamp with time zone NOT NULL,
    held_back json,
    held_back_reason text
);

ALTER TABLE ONLY taffrail.price_refreshes FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.price_refreshes IS 'When each source of prices was last read in full, and what of it waits for a person''s word.';

COMMENT ON COLUMN taffrail.price_refreshes.source IS 'As in price_versions.';

COMMENT ON COLUMN taffrail.price_refreshes.checked_at IS 'When its list was last read in full, changed or not.';

COMMENT ON COLUMN taffrail.price_refreshes.held_back IS 'Changes that look wrong, as in price_versions.catalogue; null is none.';

COMMENT ON COLUMN taffrail.price_refreshes.held_back_reason IS 'What looks wrong about them.';

CREATE TABLE taffrail.price_versions (
    version text NOT NULL,
    number bigint NOT NULL,
    source text NOT NULL,
    effective_from timestamp with time zone NOT NULL,
    created_at timestamp with time zone NOT NULL,
    catalogue json NOT NULL
);

ALTER TABLE ONLY taffrail.price_versions FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE taffrail.price_versions IS 'Every version of the price book that a row can name, so that history keeps its price.';

COMMENT ON COLUMN taffrail.price_versions.version IS 'As in api_usage_logs.price_version.';

COMMENT ON COLUMN taffrail.price_versions.number IS 'Counts the versions of all sources.';

COMMENT ON COLUMN taffrail.price_versions.source IS 'Whose list it is: a provider''s name for its own API, litellm or genai-prices for an import.';

COMMENT ON COLUMN taffrail.price_versions.effective_from IS 'From when its prices hold for models that had others before.';

COMMENT ON COLUMN taffrail.price_versions.created_at IS 'When it was made.';

COMMENT ON COLUMN taffrail.price_versions.catalogue IS 'The prices that it changes, by model by provider; null is a model that is listed no more.';

CREATE TABLE taffrail.reader_scopes (
    reader name NOT NULL,
    namespace text,
    team text,
    CONSTRAINT reader_scopes_check CHECK (((namespace IS NOT NULL) OR (team IS NOT NULL)))
);

COMMENT ON TABLE taffrail.reader_scopes IS 'Limits what a login that reads may see: rows that match one of its scopes. A login without scopes sees everything.';

COMMENT ON COLUMN taffrail.reader_scopes.reader IS 'The name of the login.';

COMMENT ON COLUMN taffrail.reader_scopes.namespace IS 'Only rows and sums of this namespace.';

COMMENT ON COLUMN taffrail.reader_scopes.team IS 'Only rows and sums whose attribution label `team` has this value.';

CREATE TABLE taffrail.retention (
    kept_from date NOT NULL,
    changed_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE taffrail.retention IS 'From which day on rows are kept; earlier days have been dropped. At most one row.';

COMMENT ON COLUMN taffrail.retention.kept_from IS 'The first day that was not dropped.';

COMMENT ON COLUMN taffrail.retention.changed_at IS 'When a day was last dropped.';

ALTER TABLE ONLY taffrail.api_cost_changes
    ADD CONSTRAINT api_cost_changes_pkey PRIMARY KEY (id, changed_at);

ALTER TABLE ONLY taffrail.api_jobs
    ADD CONSTRAINT api_jobs_pkey PRIMARY KEY (provider, job_id);

ALTER TABLE ONLY taffrail.api_provider_balances
    ADD CONSTRAINT api_provider_balances_pkey PRIMARY KEY (provider, account, slot, part);

ALTER TABLE ONLY taffrail.api_receipt_tries
    ADD CONSTRAINT api_receipt_tries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY taffrail.api_reconciliations
    ADD CONSTRAINT api_reconciliations_pkey PRIMARY KEY (provider, account, day);

ALTER TABLE ONLY taffrail.api_usage_aggregates
    ADD CONSTRAINT api_usage_aggregates_pkey PRIMARY KEY (granularity, bucket_start, namespace, provider, model, operation, outcome_class, attribution, shard);

ALTER TABLE ONLY taffrail.api_usage_logs
    ADD CONSTRAINT api_usage_logs_pkey PRIMARY KEY (id, day);

ALTER TABLE ONLY taffrail.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);

ALTER TABLE ONLY taffrail.price_refreshes
    ADD CONSTRAINT price_refreshes_pkey PRIMARY KEY (source);

ALTER TABLE ONLY taffrail.price_versions
    ADD CONSTRAINT price_versions_number_key UNIQUE (number);

ALTER TABLE ONLY taffrail.price_versions
    ADD CONSTRAINT price_versions_pkey PRIMARY KEY (version);

ALTER TABLE ONLY taffrail.reader_scopes
    ADD CONSTRAINT reader_scopes_reader_namespace_team_key UNIQUE NULLS NOT DISTINCT (reader, namespace, team);

CREATE INDEX api_jobs_open ON taffrail.api_jobs USING btree (updated_at) WHERE (recorded_at IS NULL);

CREATE INDEX api_jobs_recorded ON taffrail.api_jobs USING btree (recorded_at) WHERE (recorded_at IS NOT NULL);

CREATE INDEX api_provider_balances_read_at ON taffrail.api_provider_balances USING btree (read_at);

CREATE INDEX api_receipt_tries_asked_at ON taffrail.api_receipt_tries USING btree (asked_at);

CREATE INDEX api_reconciliations_day ON taffrail.api_reconciliations USING btree (day);

CREATE INDEX api_usage_logs_outcome ON ONLY taffrail.api_usage_logs USING btree (outcome, started_at DESC, id DESC) WHERE (outcome <> 'ok'::text);

CREATE INDEX api_usage_logs_provider ON ONLY taffrail.api_usage_logs USING btree (provider, started_at DESC, id DESC);

CREATE INDEX api_usage_logs_started_at ON ONLY taffrail.api_usage_logs USING btree (started_at DESC, id DESC);

CREATE INDEX api_usage_logs_uncertain ON ONLY taffrail.api_usage_logs USING btree (provider, started_at) WHERE ((unpriced_reason IS NOT NULL) OR (cost_source = 'estimated'::text));

CREATE UNIQUE INDEX retention_is_one_row ON taffrail.retention USING btree ((true));

ALTER TABLE taffrail.api_cost_changes ENABLE ROW LEVEL SECURITY;

ALTER TABLE taffrail.api_jobs ENABLE ROW LEVEL SECURITY;

ALTER TABLE taffrail.api_provider_balances ENABLE ROW LEVEL SECURITY;

ALTER TABLE taffrail.api_receipt_tries ENABLE ROW LEVEL SECURITY;

ALTER TABLE taffrail.api_reconciliations ENABLE ROW LEVEL SECURITY;

ALTER TABLE taffrail.api_usage_aggregates ENABLE ROW LEVEL SECURITY;

ALTER TABLE taffrail.api_usage_logs ENABLE ROW LEVEL SECURITY;

CREATE POLICY owner ON taffrail.api_cost_changes TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.api_jobs TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.api_provider_balances TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.api_receipt_tries TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.api_reconciliations TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.api_usage_aggregates TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.api_usage_logs TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.price_refreshes TO postgres USING (true) WITH CHECK (true);

CREATE POLICY owner ON taffrail.price_versions TO postgres USING (true) WITH CHECK (true);

ALTER TABLE taffrail.price_refreshes ENABLE ROW LEVEL SECURITY;

ALTER TABLE taffrail.price_versions ENABLE ROW LEVEL SECURITY;

CREATE POLICY reader ON taffrail.api_cost_changes FOR SELECT USING ((NOT ( SELECT taffrail.is_scoped() AS is_scoped)));

CREATE POLICY reader ON taffrail.api_provider_balances FOR SELECT USING ((NOT ( SELECT taffrail.is_scoped() AS is_scoped)));

CREATE POLICY reader ON taffrail.api_reconciliations FOR SELECT USING ((NOT ( SELECT taffrail.is_scoped() AS is_scoped)));

CREATE POLICY reader ON taffrail.api_usage_aggregates FOR SELECT USING (((NOT ( SELECT taffrail.is_scoped() AS is_scoped)) OR taffrail.may_read(NULLIF(namespace, ''::text), attribution)));

CREATE POLICY reader ON taffrail.api_usage_logs FOR SELECT USING (((NOT ( SELECT taffrail.is_scoped() AS is_scoped)) OR taffrail.may_read(namespace, attribution)));

CREATE POLICY reader ON taffrail.price_refreshes FOR SELECT USING (true);

CREATE POLICY reader ON taffrail.price_versions FOR SELECT USING (true);

GRANT USAGE ON SCHEMA taffrail TO taffrail_ingest;
GRANT USAGE ON SCHEMA taffrail TO taffrail_balance;
GRANT USAGE ON SCHEMA taffrail TO taffrail_reader;

REVOKE ALL ON FUNCTION taffrail.account_signals(lasting interval) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.account_signals(lasting interval) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.add_price_version(name text, list text, effective timestamp with time zone, changes text, since bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.add_price_version(name text, list text, effective timestamp with time zone, changes text, since bigint) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.add_units(a jsonb, b jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.add_units(a jsonb, b jsonb) TO taffrail_balance;
GRANT ALL ON FUNCTION taffrail.add_units(a jsonb, b jsonb) TO taffrail_reader;

REVOKE ALL ON FUNCTION taffrail.backfill_usage_aggregates("from" date, "to" date) FROM PUBLIC;

REVOKE ALL ON FUNCTION taffrail.days_ahead_max() FROM PUBLIC;

REVOKE ALL ON FUNCTION taffrail.drop_aggregates(before date, rows_max integer) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.drop_aggregates(before date, rows_max integer) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.drop_balances(before date, rows_max integer) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.drop_balances(before date, rows_max integer) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.drop_jobs(before date, rows_max integer) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.drop_jobs(before date, rows_max integer) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.drop_oldest_partition(before date) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.drop_oldest_partition(before date) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.ensure_partition(wanted date) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.ensure_partition(wanted date) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.exchange_jobs(batch text) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.exchange_jobs(batch text) TO taffrail_ingest;

REVOKE ALL ON FUNCTION taffrail.has_partition(wanted date) FROM PUBLIC;

REVOKE ALL ON FUNCTION taffrail.is_scoped() FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.is_scoped() TO taffrail_balance;
GRANT ALL ON FUNCTION taffrail.is_scoped() TO taffrail_reader;

REVOKE ALL ON FUNCTION taffrail.may_read(row_namespace text, row_attribution jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.may_read(row_namespace text, row_attribution jsonb) TO taffrail_balance;
GRANT ALL ON FUNCTION taffrail.may_read(row_namespace text, row_attribution jsonb) TO taffrail_reader;

REVOKE ALL ON FUNCTION taffrail.metered_spend(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.metered_spend(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.note_price_refresh(list text, changes text, reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.note_price_refresh(list text, changes text, reason text) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.note_receipt_tries(rows text, forget_before timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.note_receipt_tries(rows text, forget_before timestamp with time zone) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.outcome_class(outcome text) FROM PUBLIC;

REVOKE ALL ON FUNCTION taffrail.overdue_jobs(grace interval, rows_max integer) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.overdue_jobs(grace interval, rows_max integer) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.price_versions_after(known bigint, rows_max integer) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.price_versions_after(known bigint, rows_max integer) TO taffrail_ingest;
GRANT ALL ON FUNCTION taffrail.price_versions_after(known bigint, rows_max integer) TO taffrail_balance;
GRANT ALL ON FUNCTION taffrail.price_versions_after(known bigint, rows_max integer) TO taffrail_reader;

REVOKE ALL ON FUNCTION taffrail.record_balance(reading text) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.record_balance(reading text) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.record_reconciliations(rows text) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.record_reconciliations(rows text) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.record_usage(batch text) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.record_usage(batch text) TO taffrail_ingest;
GRANT ALL ON FUNCTION taffrail.record_usage(batch text) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.recost_usage(batch text) FROM PUBLIC;

REVOKE ALL ON FUNCTION taffrail.schema_version() FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.schema_version() TO taffrail_ingest;
GRANT ALL ON FUNCTION taffrail.schema_version() TO taffrail_balance;
GRANT ALL ON FUNCTION taffrail.schema_version() TO taffrail_reader;

REVOKE ALL ON PROCEDURE taffrail.set_up_roles() FROM PUBLIC;

REVOKE ALL ON FUNCTION taffrail.state_costs(batch text) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.state_costs(batch text) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.take_lease(wanted text, by_holder text, lasting interval) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.take_lease(wanted text, by_holder text, lasting interval) TO taffrail_balance;

REVOKE ALL ON FUNCTION taffrail.uncertain_costs(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone, of_keys text[], tries_max integer, rows_max integer) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.uncertain_costs(of_provider text, from_time timestamp with time zone, to_time timestamp with time zone, of_keys text[], tries_max integer, rows_max integer) TO taffrail_balance;

GRANT SELECT ON TABLE taffrail.api_usage_aggregates TO taffrail_balance;
GRANT SELECT ON TABLE taffrail.api_usage_aggregates TO taffrail_reader;

REVOKE ALL ON FUNCTION taffrail.upsert_usage_aggregate(VARIADIC buckets taffrail.api_usage_aggregates[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION taffrail.sum_units(jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION taffrail.sum_units(jsonb) TO taffrail_balance;
GRANT ALL ON FUNCTION taffrail.sum_units(jsonb) TO taffrail_reader;

GRANT SELECT ON TABLE taffrail.api_cost_changes TO taffrail_reader;

GRANT SELECT ON TABLE taffrail.api_provider_balances TO taffrail_balance;
GRANT SELECT ON TABLE taffrail.api_provider_balances TO taffrail_reader;

GRANT SELECT ON TABLE taffrail.api_reconciliations TO taffrail_balance;
GRANT SELECT ON TABLE taffrail.api_reconciliations TO taffrail_reader;

GRANT SELECT ON TABLE taffrail.api_usage_buckets TO taffrail_balance;
GRANT SELECT ON TABLE taffrail.api_usage_buckets TO taffrail_reader;

GRANT SELECT ON TABLE taffrail.api_usage_logs TO taffrail_reader;

GRANT SELECT ON TABLE taffrail.price_refreshes TO taffrail_balance;
GRANT SELECT ON TABLE taffrail.price_refreshes TO taffrail_reader;

GRANT SELECT ON TABLE taffrail.price_versions TO taffrail_balance;
GRANT SELECT ON TABLE taffrail.price_versions TO taffrail_reader;
