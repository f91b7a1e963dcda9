-- Every version of the price book that a row can name, so that history keeps its price.
create table price_versions (
    version                text    not null primary key,
    source                 text    not null, -- embedded, a provider's name, or import
    effective_from         text    not null,
    created_at             text    not null,
    catalogue              text    not null  -- json
) strict, without rowid;
