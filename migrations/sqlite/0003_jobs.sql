-- Asynchronous jobs, whose two ends may be seen by two processes. The key is the gate against a
-- second row for one job; the first terminal half wins. There are halves, in json, only until the
-- job has its row in api_usage_logs.
create table api_jobs (
    provider               text    not null,
    job_id                 text    not null,
    id                     text    not null, -- of the job's row in api_usage_logs
    submitted_at           text,
    deadline_at            text,                    -- when whoever submitted it gives it up
    ended_at               text,
    is_settled             integer not null default 0 check (is_settled in (0, 1)), -- end_half tells all
    submit_half            text,
    end_half               text,
    recorded_at            text,                    -- null while the job is open
    updated_at             text    not null,
    primary key (provider, job_id)
) strict, without rowid;

create index api_jobs_open on api_jobs (updated_at) where recorded_at is null;
create index api_jobs_recorded on api_jobs (recorded_at) where recorded_at is not null;
