-- Who may do what. Roles belong to the whole server, so they may exist already, and whoever
-- migrates may not be allowed to make them: then somebody else makes them and calls this again.
create procedure taffrail.set_up_roles()
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
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
comment on procedure taffrail.set_up_roles() is 'Makes the roles that are missing and gives each its rights; may be called again.';

-- Removes the sums of buckets before a day, at most that many rows at a time; returns how many.
create function taffrail.drop_aggregates(before date, rows_max integer) returns bigint
language sql security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
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
comment on function taffrail.drop_aggregates(date, integer) is 'Removes sums before a day, some at a time; returns how many.';

-- What a reader may see. A login that is named here sees only what one of its rows allows; a
-- login that is not named sees everything.
create table taffrail.reader_scopes (
    reader                 name        not null,
    namespace              text,
    team                   text,
    unique nulls not distinct (reader, namespace, team),
    check (namespace is not null or team is not null)
);
comment on table taffrail.reader_scopes is 'Limits what a login that reads may see: rows that match one of its scopes. A login without scopes sees everything.';
comment on column taffrail.reader_scopes.reader is 'The name of the login.';
comment on column taffrail.reader_scopes.namespace is 'Only rows and sums of this namespace.';
comment on column taffrail.reader_scopes.team is 'Only rows and sums whose attribution label `team` has this value.';

create function taffrail.is_scoped() returns boolean
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$ select exists (select from taffrail.reader_scopes where reader = session_user) $$;

create function taffrail.may_read(row_namespace text, row_attribution jsonb) returns boolean
language sql stable security definer
set search_path = pg_catalog, taffrail, pg_temp
as $$
    select exists (
        select from taffrail.reader_scopes
        where reader = session_user
            and (namespace is null or namespace = row_namespace)
            and (team is null or team = row_attribution ->> 'team')
    )
$$;
comment on function taffrail.is_scoped() is 'Whether the login that asks has scopes.';
comment on function taffrail.may_read(text, jsonb) is 'Whether a scope of the login that asks allows a row.';

-- Row level security holds for the owner too; its policies are what lets the functions above
-- write. is_scoped() in a sub-select is asked once a statement, and may_read() only for logins
-- that have scopes.
do $$
declare
    protected text;
begin
    foreach protected in array array[
        'api_usage_logs', 'api_usage_aggregates', 'api_jobs', 'api_provider_balances',
        'api_reconciliations', 'price_versions', 'price_refreshes', 'api_cost_changes',
        'api_receipt_tries'
    ] loop
        execute format('alter table taffrail.%I enable row level security', protected);
        execute format('alter table taffrail.%I force row level security', protected);
        execute format('create policy owner on taffrail.%I to current_user using (true) with check (true)', protected);
    end loop;
end
$$;
create policy reader on taffrail.api_usage_logs for select
    using (not (select taffrail.is_scoped()) or taffrail.may_read(namespace, attribution));
create policy reader on taffrail.api_usage_aggregates for select
    using (not (select taffrail.is_scoped()) or taffrail.may_read(nullif(namespace, ''), attribution));
create policy reader on taffrail.api_provider_balances for select using (not (select taffrail.is_scoped()));
create policy reader on taffrail.api_reconciliations for select using (not (select taffrail.is_scoped()));
create policy reader on taffrail.price_versions for select using (true);
create policy reader on taffrail.price_refreshes for select using (true);
create policy reader on taffrail.api_cost_changes for select using (not (select taffrail.is_scoped()));

call taffrail.set_up_roles();
