-- How often providers were asked what a request cost, as long as they have not told. Rows that were
-- not asked about for as long as they would be asked about at all go.
create table api_receipt_tries (
    id                     text    not null primary key, -- the row in api_usage_logs
    tries                  integer not null,
    asked_at               text    not null,
    next_at                text    not null              -- no sooner is it asked again
) strict, without rowid;

create index api_receipt_tries_asked_at on api_receipt_tries (asked_at);
create index api_usage_logs_uncertain on api_usage_logs (provider, started_at)
    where unpriced_reason is not null or cost_source = 'estimated';
