-- One row per account, reading and currency. The slot is the reading's scheduled time, or its own
-- time if it was asked for: its uniqueness makes a doubled sync harmless. The first currency is part
-- 0; a failed reading has part 0 alone, with a result and no balance.
create table api_provider_balances (
    provider               text    not null,
    account                text    not null,
    slot                   text    not null,
    part                   integer not null default 0,
    read_at                text    not null,
    result                 text    not null, -- ok, auth, unsupported, rate_limited, timeout, error
    kind                   text,             -- prepaid, key_limit, ledger
    currency               text,
    balance                text,             -- decimal, in the provider's own currency; null is unknown
    detail                 text,             -- what went wrong, in a line
    raw                    text,             -- json, the answer without anything that could be a key
    primary key (provider, account, slot, part)
) strict, without rowid;

create index api_provider_balances_read_at on api_provider_balances (read_at);
