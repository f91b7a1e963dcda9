-- What a provider billed for a day against what was metered: one row per account and UTC day. A day
-- that was read again has its last bill, since vendors still change recent days.
create table api_reconciliations (
    provider               text    not null,
    account                text    not null,
    day                    text    not null,
    window_start           text    not null, -- midnight, or the balance reading next to it
    window_end             text    not null,
    read_at                text    not null,
    result                 text    not null, -- ok, auth, unsupported, rate_limited, timeout, error
    source                 text,             -- the vendor's name of its API, or balance
    provider_spend_usd     text,             -- decimal; null is unknown
    metered_usd            text,             -- decimal, without upstream_usd; null is unknown
    unmetered_usd          text,             -- decimal, negative if more was metered than billed
    upstream_usd           text,             -- decimal, what another party bills
    requests               integer,
    unpriced_requests      integer,          -- missing from metered_usd
    metered_keys           integer,
    unclaimed_keys         integer,          -- keys that no account claims
    detail                 text,             -- in a line
    primary key (provider, account, day)
) strict, without rowid;

create index api_reconciliations_day on api_reconciliations (day);
