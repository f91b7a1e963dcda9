-- Partitions are days. They are made ahead by the exporter and on demand by record_usage(), and
-- there is no default partition: a row of an unexpected day makes its day.

-- What has been retired. A row of a day that is gone must not come back: its sums are in the
-- aggregates already.
create table taffrail.retention (
    kept_from              date        not null,
    changed_at             timestamptz not null default now()
);
-- One row at most.
create unique index retention_is_one_row on taffrail.retention ((true));
comment on table taffrail.retention is 'From which day on rows are kept; earlier days have been dropped. At most one row.';
comment on column taffrail.retention.kept_from is 'The first day that was not dropped.';
comment on column taffrail.retention.changed_at is 'When a day was last dropped.';

-- How far in the future a day may lie, so that a mad clock does not make partitions for ever.
create function taffrail.days_ahead_max() returns integer
language sql immutable as $$ select 400 $$;
comment on function taffrail.days_ahead_max() is 'How many days from now on rows are taken for.';

-- Whether a day has its partition. A query and not to_regclass(), which can answer from before
-- somebody dropped it. In plpgsql, which keeps its plan.
create function taffrail.has_partition(wanted date) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from pg_class
        where relnamespace = 'taffrail'::regnamespace
            and relname = 'api_usage_logs_' || to_char(wanted, 'YYYYMMDD')
    );
end
$$;
comment on function taffrail.has_partition(date) is 'Whether a day has its partition.';

-- Makes the partition of a day, if it is missing. The table is made first and attached then:
-- that waits for no reader, and no reader or writer waits for it.
create function taffrail.ensure_partition(wanted date) returns void
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
set client_min_messages = warning
as $$
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
comment on function taffrail.ensure_partition(date) is 'Makes the partition of a day, if it is missing; refuses days that retention dropped and days too far ahead.';

-- Drops the oldest partition before a day and says which one, null if there is none. It does not
-- wait long for a reader's lock, because writers queue behind whoever waits. A caller tries again
-- later on 55P03.
create function taffrail.drop_oldest_partition(before date) returns date
language plpgsql security definer
set search_path = pg_catalog, taffrail, pg_temp
set lock_timeout = '200ms'
set client_min_messages = warning
as $$
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
comment on function taffrail.drop_oldest_partition(date) is 'Drops the oldest partition before a day and returns its day, or null. Fails with 55P03 while somebody reads; try again later.';
