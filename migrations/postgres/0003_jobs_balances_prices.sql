-- Asynchronous jobs, whose two ends may be seen by two processes. The key is the gate against a
-- second row for one job; the first terminal half wins. There are halves only until the job has its
-- row in api_usage_logs.
create table taffrail.api_jobs (
    provider               text        not null,
    job_id                 text        not null,
    id                     uuid        not null,
    submitted_at           timestamptz,
    deadline_at            timestamptz,
    ended_at               timestamptz,
    is_settled             boolean     not null default false,
    submit_half            json,
    end_half               json,
    recorded_at            timestamptz,
    updated_at             timestamptz not null,
    primary key (provider, job_id)
);
create index api_jobs_open on taffrail.api_jobs (updated_at) where recorded_at is null;
create index api_jobs_recorded on taffrail.api_jobs (recorded_at) where recorded_at is not null;
comment on table taffrail.api_jobs is 'Asynchronous jobs: what is known of the open ones, and which have their row.';
comment on column taffrail.api_jobs.provider is 'The provider''s name.';
comment on column taffrail.api_jobs.job_id is 'The provider''s id of the job.';
comment on column taffrail.api_jobs.id is 'The id of the job''s row in api_usage_logs.';
comment on column taffrail.api_jobs.submitted_at is 'When it was submitted.';
comment on column taffrail.api_jobs.deadline_at is 'When the process that submitted it gives it up.';
comment on column taffrail.api_jobs.ended_at is 'When it was first seen to have ended.';
comment on column taffrail.api_jobs.is_settled is 'Whether the half of its end is all that will be told of it.';
comment on column taffrail.api_jobs.submit_half is 'What the process that submitted it knows.';
comment on column taffrail.api_jobs.end_half is 'What the process that saw its end knows.';
comment on column taffrail.api_jobs.recorded_at is 'When its row was made; null while the job is open.';
comment on column taffrail.api_jobs.updated_at is 'When a half, or the row, last arrived.';

-- The slot is the reading's scheduled time: its uniqueness makes a doubled sync harmless. A reading
-- has a row for each currency, the first of them part 0, and a failed one has part 0 alone.
create table taffrail.api_provider_balances (
    provider               text        not null,
    account                text        not null,
    slot                   timestamptz not null,
    part                   smallint    not null default 0,
    read_at                timestamptz not null,
    result                 text        not null,
    kind                   text,
    currency               text,
    balance                numeric,
    detail                 text,
    raw                    json,
    primary key (provider, account, slot, part)
);
create index api_provider_balances_read_at on taffrail.api_provider_balances (read_at);
comment on table taffrail.api_provider_balances is 'One row per account, reading and currency. A failed reading has a result and no balance.';
comment on column taffrail.api_provider_balances.provider is 'The provider''s name.';
comment on column taffrail.api_provider_balances.account is 'The account''s name in the configuration.';
comment on column taffrail.api_provider_balances.slot is 'The scheduled time of the reading; its own time if it was asked for.';
comment on column taffrail.api_provider_balances.part is 'Which currency of the reading, from 0.';
comment on column taffrail.api_provider_balances.read_at is 'When it was read.';
comment on column taffrail.api_provider_balances.result is 'ok, auth, unsupported, rate_limited, timeout or error.';
comment on column taffrail.api_provider_balances.kind is 'prepaid, key_limit or ledger; null if there was no answer.';
comment on column taffrail.api_provider_balances.currency is 'The provider''s own currency or unit.';
comment on column taffrail.api_provider_balances.balance is 'In that currency; null is unknown or without limit.';
comment on column taffrail.api_provider_balances.detail is 'What went wrong, in a line.';
comment on column taffrail.api_provider_balances.raw is 'The provider''s answer, without anything that could be a key.';

-- Who does alone what is to be done once for a fleet. Times are the database's.
create table taffrail.leases (
    name                   text        not null primary key,
    holder                 text        not null,
    expires_at             timestamptz not null
);
comment on table taffrail.leases is 'Who does alone what is to be done once for a fleet, and until when.';
comment on column taffrail.leases.name is 'What is done.';
comment on column taffrail.leases.holder is 'The process that does it.';
comment on column taffrail.leases.expires_at is 'When another one may take it.';

-- A version holds what changed since the one before of the same source, so that a daily refresh is
-- small; the numbers follow one another in the order of their commits, so that whoever knows one
-- asks for the later ones alone.
create table taffrail.price_versions (
    version                text        not null primary key,
    number                 bigint      not null unique,
    source                 text        not null,
    effective_from         timestamptz not null,
    created_at             timestamptz not null,
    catalogue              json        not null
);
comment on table taffrail.price_versions is 'Every version of the price book that a row can name, so that history keeps its price.';
comment on column taffrail.price_versions.version is 'As in api_usage_logs.price_version.';
comment on column taffrail.price_versions.number is 'Counts the versions of all sources.';
comment on column taffrail.price_versions.source is 'Whose list it is: a provider''s name for its own API, litellm or genai-prices for an import.';
comment on column taffrail.price_versions.effective_from is 'From when its prices hold for models that had others before.';
comment on column taffrail.price_versions.created_at is 'When it was made.';
comment on column taffrail.price_versions.catalogue is 'The prices that it changes, by model by provider; null is a model that is listed no more.';

create table taffrail.price_refreshes (
    source                 text        not null primary key,
    checked_at             timestamptz not null,
    held_back              json,
    held_back_reason       text
);
comment on table taffrail.price_refreshes is 'When each source of prices was last read in full, and what of it waits for a person''s word.';
comment on column taffrail.price_refreshes.source is 'As in price_versions.';
comment on column taffrail.price_refreshes.checked_at is 'When its list was last read in full, changed or not.';
comment on column taffrail.price_refreshes.held_back is 'Changes that look wrong, as in price_versions.catalogue; null is none.';
comment on column taffrail.price_refreshes.held_back_reason is 'What looks wrong about them.';

-- What re-costing and receipts changed, row by row: the cost of a row before each change is here for
-- ever.
create table taffrail.api_cost_changes (
    id                     uuid        not null,
    day                    date        not null,
    changed_at             timestamptz not null,
    old_cost_usd           numeric,
    old_cost_source        text,
    old_price_version      text,
    old_unpriced_reason    text,
    new_cost_usd           numeric     not null,
    new_cost_source        text        not null,
    new_price_version      text,
    primary key (id, changed_at)
);
comment on table taffrail.api_cost_changes is 'The old and the new cost of each row whose cost was computed anew.';
comment on column taffrail.api_cost_changes.id is 'The row in api_usage_logs.';
comment on column taffrail.api_cost_changes.day is 'Its day.';
comment on column taffrail.api_cost_changes.changed_at is 'When its cost changed.';
comment on column taffrail.api_cost_changes.old_cost_usd is 'The cost before; null was unknown.';
comment on column taffrail.api_cost_changes.old_cost_source is 'Its source before.';
comment on column taffrail.api_cost_changes.old_price_version is 'The version that it was priced with before.';
comment on column taffrail.api_cost_changes.old_unpriced_reason is 'Why the cost was unknown before.';
comment on column taffrail.api_cost_changes.new_cost_usd is 'The cost since.';
comment on column taffrail.api_cost_changes.new_cost_source is 'Its source since.';
comment on column taffrail.api_cost_changes.new_price_version is 'The version that it is priced with since; null is the provider''s own word.';

-- How often providers were asked what a request cost, as long as they have not told.
create table taffrail.api_receipt_tries (
    id                     uuid        not null primary key,
    tries                  integer     not null,
    asked_at               timestamptz not null,
    next_at                timestamptz not null
);
create index api_receipt_tries_asked_at on taffrail.api_receipt_tries (asked_at);
comment on table taffrail.api_receipt_tries is 'Rows whose provider was asked what they cost and has not told.';
comment on column taffrail.api_receipt_tries.id is 'The row in api_usage_logs.';
comment on column taffrail.api_receipt_tries.tries is 'How often it was asked about.';
comment on column taffrail.api_receipt_tries.asked_at is 'When it was last asked about.';
comment on column taffrail.api_receipt_tries.next_at is 'When it may be asked about again.';

-- What a provider billed for a day against what was metered. A day that was read again has its last
-- bill: vendors still change recent days.
create table taffrail.api_reconciliations (
    provider               text        not null,
    account                text        not null,
    day                    date        not null,
    window_start           timestamptz not null,
    window_end             timestamptz not null,
    read_at                timestamptz not null,
    result                 text        not null,
    source                 text,
    provider_spend_usd     numeric,
    metered_usd            numeric,
    unmetered_usd          numeric,
    upstream_usd           numeric,
    requests               bigint,
    unpriced_requests      bigint,
    metered_keys           integer,
    unclaimed_keys         integer,
    detail                 text,
    primary key (provider, account, day)
);
create index api_reconciliations_day on taffrail.api_reconciliations (day);
comment on table taffrail.api_reconciliations is 'One row per account and UTC day: the provider''s bill against what was metered.';
comment on column taffrail.api_reconciliations.provider is 'The provider''s name.';
comment on column taffrail.api_reconciliations.account is 'The account''s name in the configuration.';
comment on column taffrail.api_reconciliations.day is 'The UTC day.';
comment on column taffrail.api_reconciliations.window_start is 'From when the bill counts: midnight, or the balance reading next to it.';
comment on column taffrail.api_reconciliations.window_end is 'To when the bill counts.';
comment on column taffrail.api_reconciliations.read_at is 'When the bill was read.';
comment on column taffrail.api_reconciliations.result is 'ok, auth, unsupported, rate_limited, timeout or error.';
comment on column taffrail.api_reconciliations.source is 'Where the bill is from: the vendor''s name of its API, or balance.';
comment on column taffrail.api_reconciliations.provider_spend_usd is 'What the provider says was spent, in US dollars; null is unknown.';
comment on column taffrail.api_reconciliations.metered_usd is 'What the requests that were seen cost, without what another party bills; null is unknown.';
comment on column taffrail.api_reconciliations.unmetered_usd is 'The bill less what was metered; negative if more was metered than billed.';
comment on column taffrail.api_reconciliations.upstream_usd is 'What another party bills for the requests that were seen; no part of the others.';
comment on column taffrail.api_reconciliations.requests is 'How many requests were seen.';
comment on column taffrail.api_reconciliations.unpriced_requests is 'How many of them cost something unknown, and so are missing from metered_usd.';
comment on column taffrail.api_reconciliations.metered_keys is 'How many keys made these requests.';
comment on column taffrail.api_reconciliations.unclaimed_keys is 'How many further keys made requests to the provider that no account claims.';
comment on column taffrail.api_reconciliations.detail is 'What is to be said of it, in a line; why it failed if it did.';
