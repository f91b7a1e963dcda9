-- One row per account, kind and reading. The slot is the reading's scheduled time: its
-- uniqueness makes a doubled sync harmless. A failed reading has a result and no balance.
create table api_provider_balances (
    provider               text    not null,
    account                text    not null,
    kind                   text    not null, -- prepaid, key_limit, ledger
    slot                   text    not null,
    read_at                text    not null,
    result                 text    not null, -- ok, auth, unsupported, rate_limited, timeout, error
    currency               text,
    balance                text,             -- decimal, in the provider's own currency
    primary key (provider, account, kind, slot)
) strict, without rowid;
