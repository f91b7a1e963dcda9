-- From which day on rows are kept; earlier days have been dropped. A row of a day that is gone must
-- not come back: its sums are in the aggregates already. At most one row.
create table retention (
    kept_from              text    not null,
    changed_at             text    not null
) strict;
create unique index retention_is_one_row on retention ((true));
