-- The versions of price lists that a row can name, so that history keeps its price. A version holds
-- what changed since the one before of the same source; the numbers count the versions of all.
create table price_versions (
    version                text    not null primary key,
    number                 integer not null unique,
    source                 text    not null, -- a provider's name, litellm or genai-prices
    effective_from         text    not null,
    created_at             text    not null,
    catalogue              text    not null  -- json by model by provider; null is listed no more
) strict, without rowid;

-- When each source was last read in full, and what of it waits for a person's word.
create table price_refreshes (
    source                 text    not null primary key,
    checked_at             text    not null,
    held_back              text,             -- json, as price_versions.catalogue
    held_back_reason       text
) strict, without rowid;

-- What re-costing and receipts changed, row by row: the cost of a row before each change is here for
-- ever.
create table api_cost_changes (
    id                     text    not null,
    day                    text    not null,
    changed_at             text    not null,
    old_cost_usd           text,
    old_cost_source        text,
    old_price_version      text,
    old_unpriced_reason    text,
    new_cost_usd           text    not null,
    new_cost_source        text    not null,
    new_price_version      text,             -- null is the provider's own word
    primary key (id, changed_at)
) strict, without rowid;
